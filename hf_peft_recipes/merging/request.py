"""What a merge is asked for, and what can be refused before anything is loaded. Imports no torch."""

import inspect
import json
import os
import shutil
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_peft_recipes import models
from hf_peft_recipes.errors import UserError, did_you_mean
from hf_peft_recipes.pickles import adapter_advice
from hf_peft_recipes.spec import ResolvedRecipe

MERGE_FILE = "merge.json"
VARIANT_NAMES = ("bf16", "dequantized", "requantized")
_ADAPTER_CONFIG = "adapter_config.json"
_CONVERTER = "convert_hf_to_gguf.py"
_TAKES_DENSITY = ("ties", "dare", "magnitude")
_OURS = ("adapters", "weights", "adapter_name")
"""Arguments of PEFT's `add_weighted_adapter` that are put together here."""


@dataclass(frozen=True)
class MergeRequest:
    """What a merge is asked for beside its run."""

    folder: Path
    """The run's."""
    target: Path
    """The merged model's: new, empty, or that of an earlier merge."""
    into: str | None = None
    """One of `VARIANT_NAMES`; None for the best of those that the run's base allows."""
    adapters: Sequence[Path] = ()
    """Folders of further adapters on the same base, to be combined with the run's."""
    weights: Sequence[float] | None = None
    """One an adapter, the run's own first; None for equal shares."""
    combination: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of PEFT's `add_weighted_adapter`: `combination_type`, `density` …"""
    max_shard_size: int | str = "50GB"
    overwrite: bool = False
    gguf: bool = False
    outtype: str | None = None
    """Of the GGUF file, in the words of llama.cpp's converter."""
    own_data: bool = True
    """Whether the run's record must name the data that its recipe does; not so where the caller named others."""
    say: Callable[[str], Any] = lambda text: None
    """Takes each line of progress."""


def check(recipe: ResolvedRecipe, record: Mapping[str, Any], request: MergeRequest) -> None:
    """Raise a UserError for what no merge can be made of. Loads no weights and writes nothing."""
    if not recipe.section("adapter"):
        raise UserError(f"nothing to merge: the run trained the whole model; {str(request.folder)!r} is that model")
    if (request.folder / MERGE_FILE).is_file():
        raise UserError(f"nothing to merge: {str(request.folder)!r} is a merged model already")
    if request.into is not None and request.into not in VARIANT_NAMES:
        near = did_you_mean(request.into, VARIANT_NAMES)
        raise UserError(f"--into {request.into!r}: it is one of {', '.join(VARIANT_NAMES)}{near}")
    if request.outtype and not request.gguf:
        raise UserError("--outtype belongs to --gguf")
    if request.gguf:
        if request.into == "requantized":
            raise UserError("--gguf with --into requantized: llama.cpp converts no 4-bit checkpoint; use dequantized")
        find_converter()
    check_target(request.target, request.overwrite)
    _check_room(recipe, record, request)
    _check_shard_size(request.max_shard_size)
    configs = [_adapter_config(folder) for folder in (request.folder, *request.adapters)]
    _check_base_known(recipe, configs[0])
    if request.adapters or request.weights or request.combination:
        _check_combination(request, configs)
    _check_type(str(configs[0].get("peft_type")))


def check_target(target: Path, overwrite: bool) -> None:
    """Raise a UserError unless a merge may be written to `target`."""
    if target.exists() and not target.is_dir():
        raise UserError(f"{str(target)!r} is a file; a folder is wanted")
    held = sorted(path.name for path in target.iterdir()) if target.is_dir() else []
    if held and MERGE_FILE not in held:
        raise UserError(f"{str(target)!r} is not empty ({held[0]}) and holds no merge: use another folder")
    if held and not overwrite:
        raise UserError(f"{str(target)!r} already holds a merge; use another folder, or --overwrite to replace it")
    if held:
        foreign = sorted(set(held) - _files_of_merge(target))
        if foreign:
            raise UserError(f"--overwrite would remove {foreign[0]!r} from {str(target)!r}, which no merge wrote")
    parent = next(parent for parent in target.absolute().parents if parent.exists())
    if not os.access(parent, os.W_OK):
        raise UserError(f"{str(target)!r} cannot be written: no permission in {str(parent)!r}")


def check_free_bytes(target: Path, needed_bytes: int) -> None:
    """Raise a UserError when the disk of `target` has less room than so many bytes."""
    parent = next(parent for parent in target.absolute().parents if parent.exists())
    free = shutil.disk_usage(parent).free
    if free < needed_bytes:
        raise UserError(
            f"the merged model takes about {needed_bytes / 1e9:.2f} GB; {str(parent)!r} has {free / 1e9:.2f} GB left"
        )


def find_converter() -> list[str]:
    """Return the words that start llama.cpp's converter: the one in `$LLAMA_CPP`, else the one on PATH.

    Raises:
        UserError: there is none.
    """
    place = os.environ.get("LLAMA_CPP")
    if place:
        script = Path(place).expanduser()
        script = script / _CONVERTER if script.is_dir() else script
        if not script.is_file():
            raise UserError(f"--gguf: LLAMA_CPP is {place!r}, where there is no {_CONVERTER}")
        # Its requirements are this package's, and the format's own library lies beside it.
        return [sys.executable, str(script)]
    found = shutil.which(_CONVERTER)
    if found is None:
        raise UserError(
            f"--gguf needs llama.cpp's {_CONVERTER} on PATH or in $LLAMA_CPP: "
            "git clone https://github.com/ggml-org/llama.cpp, and LLAMA_CPP=<that folder>"
        )
    return [found]


def _files_of_merge(target: Path) -> set[str]:
    try:
        return {MERGE_FILE, *json.loads((target / MERGE_FILE).read_text(encoding="utf-8"))["files"]}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{str(target / MERGE_FILE)!r} is no record of a merge") from None


def _check_room(recipe: ResolvedRecipe, record: Mapping[str, Any], request: MergeRequest) -> None:
    # Nobody is to wait for the scores only to hear of a full disk; what is in 4 bits is measured when it is there.
    if request.into != "requantized":
        itemsize = 4 if recipe.value("model.dtype") == "float32" else 2
        check_free_bytes(request.target, int(record["parameters"]["total"]) * itemsize)


def _check_shard_size(size: int | str) -> None:
    from huggingface_hub import split_torch_state_dict_into_shards

    try:
        split_torch_state_dict_into_shards({}, max_shard_size=size)
    except ValueError as error:
        raise UserError(f"--max_shard_size: {error}") from None


def _adapter_config(folder: Path) -> dict[str, Any]:
    path = folder / _ADAPTER_CONFIG
    if not path.is_file() or not (folder / "adapter_model.safetensors").is_file():
        raise UserError(
            f"{str(folder)!r} holds no adapter ({_ADAPTER_CONFIG}, adapter_model.safetensors){adapter_advice(folder)}"
        )
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: broken JSON: {error}") from None
    return config


def _check_base_known(recipe: ResolvedRecipe, config: Mapping[str, Any]) -> None:
    """Refuse a run whose base was a caller's object, unless the base has been named since."""
    trained_on = config.get("base_model_name_or_path")
    if recipe.value("model.name_or_path") is not None or not trained_on:
        return
    # The embedded model lies elsewhere on another machine.
    if Path(trained_on).parts[-2:] != Path(models.base_location(None)).parts[-2:]:
        raise UserError(f"the run's base was an object, loaded from {trained_on!r}: name it with --model")


def _check_type(peft_type: str) -> None:
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    tuner = {str(getattr(name, "value", name)): tuner for name, tuner in PEFT_TYPE_TO_TUNER_MAPPING.items()}.get(
        peft_type
    )
    if not hasattr(tuner, "merge_and_unload"):
        raise UserError(f"PEFT cannot merge {peft_type} into a base: it adds inputs, and changes no weights")


def _check_combination(request: MergeRequest, configs: Sequence[Mapping[str, Any]]) -> None:
    from peft import LoraModel

    if not request.adapters:
        raise UserError("--weights and --combination_type need further adapters: --with OTHER_OUT")
    parameters = inspect.signature(LoraModel.add_weighted_adapter, eval_str=True).parameters
    known = [name for name in parameters if name not in ("self", *_OURS)]
    for name in request.combination:
        if name not in known:
            raise UserError(f"PEFT's add_weighted_adapter takes no {name!r}{did_you_mean(name, known)}")
    types = typing.get_args(parameters["combination_type"].annotation)
    chosen = str(request.combination["combination_type"])
    if chosen not in types:
        raise UserError(f"--combination_type {chosen!r}: PEFT has {', '.join(types)}{did_you_mean(chosen, types)}")
    if chosen.startswith(_TAKES_DENSITY) is not ("density" in request.combination):
        raise UserError(
            f"--combination_type {chosen} "
            + ("takes no --density" if "density" in request.combination else "needs --density, the share that is kept")
        )
    number = len(request.adapters) + 1
    if request.weights is not None and len(request.weights) != number:
        raise UserError(f"--weights: {len(request.weights)} for {number} adapters; one each, the run's own first")
    for folder, config in zip((request.folder, *request.adapters), configs, strict=True):
        _check_combinable(folder, config)
    bases = [_base_of(config) for config in configs]
    for folder, base in zip(request.adapters, bases[1:], strict=True):
        if base != bases[0]:
            raise UserError(f"the adapter in {str(folder)!r} was trained on {base!r}, the run's on {bases[0]!r}")


def _check_combinable(folder: Path, config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise UserError(f"{str(folder)!r} holds {config.get('peft_type')}; PEFT combines LoRA adapters alone")
    # PEFT leaves these out of the combination, or takes the first adapter's, without a word.
    for key in ("use_dora", "lora_bias", "modules_to_save", "trainable_token_indices"):
        if config.get(key):
            raise UserError(f"the adapter in {str(folder)!r} has {key}, which PEFT does not combine")


def _base_of(config: Mapping[str, Any]) -> str:
    name = str(config.get("base_model_name_or_path"))
    return str(Path(name).resolve()) if Path(name).exists() else name
