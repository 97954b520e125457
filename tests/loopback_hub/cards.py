"""Model and data set cards: the YAML head of a README, the tags it gives, and what the Hub refuses in it."""

import re
from collections.abc import Collection
from typing import Any

import yaml

_HEAD = re.compile(r"\A\s*---\r?\n(.*?)\r?\n---\s*(?:\r?\n|\Z)", re.DOTALL)
_REPOSITORY_ID = re.compile(r"(?=.{1,96}\Z)\w[\w.-]*(/\w[\w.-]*)?")


def card_data(readme: bytes) -> dict[str, Any]:
    """Return the mapping at the head of a README, empty where there is none that can be read."""
    try:
        data = yaml.safe_load(_head(readme.decode(errors="replace")))
    except yaml.YAMLError:
        return {}
    return data if isinstance(data, dict) else {}


def validate(readme: str) -> tuple[list[str], list[str]]:
    """Return what is wrong with a card, and what is only worth a warning.

    The Hub checks far more; a `base_model` that is no repository is what a training run from a local folder meets.
    """
    try:
        data = yaml.safe_load(_head(readme))
    except yaml.YAMLError as error:
        return [f"YAML metadata is not valid: {str(error).splitlines()[0]}"], []
    if data is None:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(data, dict):
        return ["YAML metadata must be a mapping"], []
    errors = []
    for position, name in enumerate(_listed(data.get("base_model"))):
        if not isinstance(name, str) or not _REPOSITORY_ID.fullmatch(name):
            key = f"base_model[{position}]" if isinstance(data["base_model"], list) else "base_model"
            errors.append(f'"{key}" with value "{name}" is not valid. Use a model id from https://hf.co/models.')
    for key in ("tags", "datasets"):
        if any(not isinstance(entry, str) for entry in _listed(data.get(key))):
            errors.append(f'"{key}" must be a string or a list of strings')
    return errors, []


def tags(data: dict[str, Any], paths: Collection[str], kind: str) -> list[str]:
    """Return the tags of a repository, in the Hub's spelling: its card's own and those made of other keys."""
    found = [str(tag) for tag in _listed(data.get("tags"))]
    if kind == "model":
        found += [str(data[key]) for key in ("library_name", "pipeline_tag") if data.get(key)]
        found += ["safetensors"] if any(path.endswith(".safetensors") for path in paths) else []
        adapter = "adapter_config.json" in paths or data.get("library_name") == "peft"
        relation = data.get("base_model_relation") or ("adapter" if adapter else "finetune")
        for name in _listed(data.get("base_model")):
            found += [f"base_model:{name}", f"base_model:{relation}:{name}"]
        found += [f"dataset:{name}" for name in _listed(data.get("datasets"))]
    found += [f"license:{name}" for name in _listed(data.get("license"))]
    found += [str(name) for name in _listed(data.get("language"))]
    return list(dict.fromkeys(found))


def _head(readme: str) -> str:
    found = _HEAD.match(readme)
    return found[1] if found else ""


def _listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]
