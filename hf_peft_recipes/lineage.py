"""An adapter that exists already: what it was trained on, and going on with it."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_peft_recipes import models
from hf_peft_recipes.adapters import adapter_file
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.fingerprint import FINGERPRINT_FILE, Fingerprint, differences, fingerprint, from_json, local_reader
from hf_peft_recipes.pickles import adapter_advice
from hf_peft_recipes.spec import Entry, ResolvedRecipe
from hf_peft_recipes.spec.entries import GIVEN

_NAMED = ("adapter", "adapter_name_or_path")
_RATIO = ("adapter", "loraplus_lr_ratio")
"""Of the section, but how an adapter is trained, and no part of it."""


def read_fingerprint(folder: Path) -> Fingerprint | None:
    """Return the fingerprint of the base that travels with what was trained, None where none could be taken.

    Raises:
        UserError: the file is broken.
    """
    path = folder / FINGERPRINT_FILE
    return from_json(path.read_text(encoding="utf-8")) if path.is_file() else None


def base_differences(folder: Path, model_section: Mapping[str, Any] | None) -> list[str]:
    """Return what tells a section's base from the one that the adapter in `folder` was trained on, in words.

    Raises:
        UserError: the base cannot be had.
    """
    expected = read_fingerprint(folder)
    if expected is None:
        return []
    files, commit = models.base_files(model_section)
    return differences(expected, fingerprint(local_reader(files), models.base_location(model_section), commit))


def require_base(folder: Path, model_section: Mapping[str, Any] | None) -> None:
    """Raise a UserError when the section's base is another one than the adapter in `folder` was trained on."""
    if told := base_differences(folder, model_section):
        location = models.base_location(model_section)
        raise UserError(
            f"the adapter in {str(folder)!r} was trained on another base than {location!r}: {'; '.join(told[:3])}"
        )


def read_config(folder: Path) -> dict[str, Any]:
    """Return the adapter's own configuration.

    Raises:
        UserError: the folder holds no adapter.
    """
    if (folder / "config.json").is_file() and adapter_file(folder) is None:
        raise UserError(f"{str(folder)!r} holds a whole model, no adapter; go on with it by --model {folder}")
    path = folder / "adapter_config.json"
    if not path.is_file() or adapter_file(folder) is None:
        raise UserError(
            f"{str(folder)!r} holds no adapter (adapter_config.json, adapter_model.safetensors){adapter_advice(folder)}"
        )
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config


def continued(recipe: ResolvedRecipe) -> ResolvedRecipe:
    """Return the recipe as it goes on with an earlier adapter; as it is where it names none.

    The earlier adapter brings its own settings, and its base where the recipe names none.

    Raises:
        UserError: there is no such adapter; it is of another type; a flag sets what the adapter has decided already.
    """
    named = recipe.entries.get(_NAMED)
    if named is None or named.value is None:
        return recipe
    folder = Path(str(named.value)).expanduser()
    if not folder.is_dir():
        pull = "; what is on the Hub comes here by `hf-peft-recipes pull`" if str(named.value).count("/") == 1 else ""
        raise UserError(f"adapter {str(named.value)!r}: no such folder{pull}")
    config = read_config(folder)
    wanted = str(recipe.value("adapter.peft_type")).upper()
    if config["peft_type"] != wanted:
        raise UserError(f"the adapter in {str(folder)!r} is {config['peft_type']}, and {recipe.name!r} trains {wanted}")
    for path, entry in recipe.entries.items():
        own = path[0] == "adapter" and path not in (_NAMED, _RATIO, ("adapter", "peft_type"))
        if own and entry.layer == GIVEN:
            raise UserError(f"{entry.origin} does nothing: the adapter in {str(folder)!r} has its own {path[1]}")
    entries = type(recipe.entries)(recipe.entries)
    kept = [(path, entries[path]) for path in entries if path in (("adapter", "peft_type"), _RATIO)]
    entries.drop(("adapter",))
    entries.update(kept)
    entries[_NAMED] = Entry(str(folder.resolve()), named.origin, named.reason, layer=named.layer)
    base = config.get("base_model_name_or_path")
    if entries.value("model", "name_or_path") is None and base != models.base_location(None):
        origin = f"{folder}/adapter_config.json"
        entries.put(("model", "name_or_path"), Entry(base, origin))
        if config.get("revision"):
            entries.put(("model", "revision"), Entry(config["revision"], origin))
    return replace(recipe, entries=entries)
