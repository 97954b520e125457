"""The config.json of a base, from its folder or from the Hub's cache; nothing else of it is read."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_peft_recipes.errors import UserError, did_you_mean
from hf_peft_recipes.spec.quantized import BITSANDBYTES, EIGHT, FLOAT8, FOUR, TORCHAO, kind_of_base, section_of


def read_config(name: str, revision: str | None = None) -> dict[str, Any]:
    """Return the base's config, see `read_base`."""
    return read_base(name, revision)[0]


def read_base(name: str, revision: str | None = None) -> tuple[dict[str, Any], Path]:
    """Return the base's config, and the folder that it lies in.

    Args:
        name: a folder, or an id of the Hub.
        revision: of a Hub id.

    Raises:
        UserError: no such folder or id, nothing cached while offline, or a file that is no config.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        path = folder / "config.json"
        if not path.is_file():
            raise UserError(f"model folder {name!r} has no config.json")
    elif folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or folder.exists():
        near = [entry.name for entry in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise UserError(f"model {name!r}: no such folder{did_you_mean(folder.name, near)}")
    else:
        path = _from_hub(name, revision)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"config of model {name!r} cannot be read: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise UserError(f"config of model {name!r} names no model_type")
    return config, path.parent


@dataclass(frozen=True)
class Quantization:
    """How the files of a base are quantised already."""

    bits: int
    """4 or 8 where bitsandbytes did it, 8 where torchao made 8-bit floats, 0 for another way."""
    double: bool
    method: str
    float8: bool = False
    compute_dtype: str | None = None
    """What weights in 4 bits are multiplied in, by name; None where the files do not say."""


def read_quantization(config: Mapping[str, Any]) -> Quantization | None:
    """Return how a base's config says that its files are quantised; None where it says nothing of it."""
    section = config.get("quantization_config")
    if not isinstance(section, Mapping):
        return None
    kind = kind_of_base(section_of(section))
    method = str(section.get("quant_method") or (BITSANDBYTES if kind else "an unknown method"))
    bits = {FOUR: 4, EIGHT: 8, FLOAT8: 8}.get(kind or "", 0) if method in (BITSANDBYTES, TORCHAO) else 0
    double, dtype = bool(section.get("bnb_4bit_use_double_quant")), section.get("bnb_4bit_compute_dtype")
    return Quantization(bits, double, method, kind == FLOAT8, dtype)


def config_values(config: Any) -> Mapping[str, Any]:
    """Return the config of a loaded model as its config.json would hold it."""
    values: dict[str, Any] = config.to_dict()
    values["dtype"] = str(values.get("dtype") or "float32").removeprefix("torch.")
    return values


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    unreachable = "not in the cache, and the Hub cannot be reached; plan it once while online, or name a folder"
    why = {
        GatedRepoError: "access to it has to be asked for on the Hub, and `hf auth login` run",
        RepositoryNotFoundError: "neither a folder nor a model on the Hub (or a private one: `hf auth login`)",
        RevisionNotFoundError: f"it has no revision {revision!r}",
        LocalEntryNotFoundError: unreachable,
        EntryNotFoundError: "it has no config.json",
        HFValidationError: "neither a folder nor an id of the Hub",
    }
    try:
        # What was fetched once is at hand at once, and without a network.
        if isinstance(cached := try_to_load_from_cache(name, "config.json", revision=revision), str):
            return Path(cached)
        with _in_silence("huggingface_hub"):
            if not HF_HUB_OFFLINE:
                # Asks once, where a download tries again for twenty seconds before it says that nobody answers.
                with suppress(HfHubHTTPError):
                    get_hf_file_metadata(hf_hub_url(name, "config.json", revision=revision))
            return Path(hf_hub_download(name, "config.json", revision=revision))
    except tuple(why) as error:
        reason = next(text for kind, text in why.items() if isinstance(error, kind))
        raise UserError(f"model {name!r}: {reason}") from None
    except (HTTPError, OSError):
        raise UserError(f"model {name!r}: {unreachable}") from None


@contextmanager
def _in_silence(name: str) -> Iterator[None]:
    """Let a library say nothing while it tries again: what came of it is told in one line."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
