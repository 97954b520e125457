"""Recipes found by name, and decided to the last value."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_peft_recipes import registry
from hf_peft_recipes.api.recipes import Recipe
from hf_peft_recipes.device import Device, detect_device, named_device
from hf_peft_recipes.spec import Override, ResolvedRecipe, compose, resolve

_OBJECTS = ("tokenizer", "callbacks")


def list_recipes(pattern: str = "*") -> list[str]:
    """Return the sorted names of the recipes that match a shell pattern."""
    return registry.list_names(pattern)


def get_recipe(name: str, *, device: Device | str | None = None, exact: bool = False, **overrides: Any) -> Recipe:
    """Return the recipe `name`, resolved for a device, every key checked. Nothing is loaded.

    Args:
        name: a registered name, names joined by `+`, or the path of a YAML file.
        device: for which the recipe's rules choose; None for this machine's.
        exact: keep what the `recipe.yaml` of an earlier run took for its device.
        overrides: fields by name, `learning_rate=1e-4`, or sections, `data={"columns": {"prompt": "question"}}`.
            `model` and `dataset` may be objects: a loaded model, a `datasets.Dataset` or rows; so may `tokenizer`;
            `callbacks` is a list of transformers' callbacks, functions may be among `rewards`, and
            `feedback={"source": …}` may be one.

    Raises:
        UserError: an unknown name or key, or a value that its field cannot take.
    """
    objects = {key: overrides.pop(key) for key in _OBJECTS if key in overrides}
    if not isinstance(overrides.get("model"), (str, Path, Mapping, type(None))):
        objects["model"] = overrides.pop("model")
    if not _is_name(overrides.get("dataset")):
        objects["dataset"] = overrides.pop("dataset")
    if isinstance(overrides.get("rewards"), list):
        from hf_peft_recipes.scorers.configured import paths_of

        overrides["rewards"], functions = paths_of(overrides["rewards"])
        objects |= {"rewards": functions} if functions else {}
    feedback = overrides.get("feedback")
    if isinstance(feedback, Mapping) and callable(feedback.get("source")):
        from hf_peft_recipes.scorers.configured import paths_of

        (path,), functions = paths_of([feedback["source"]])
        overrides["feedback"] = {**feedback, "source": path}
        objects["sources"] = functions
    given = [Override(key, _without_paths(value), f"keyword {key}") for key, value in overrides.items()]
    return resolve_recipe(name, given, device, exact, objects)


def resolve_recipe(
    name: str,
    overrides: Sequence[Override],
    device: Device | str | None = None,
    exact: bool = False,
    objects: Mapping[str, Any] | None = None,
) -> Recipe:
    """Return the recipe `name` under overrides that know where they came from; see `get_recipe`."""
    if device is None:
        device = detect_device()
    elif isinstance(device, str):
        device = named_device(device)
    composition, given, machine = compose(name, lookup, exact), tuple(overrides), device

    def decide(demo: bool, other: Device | None = None, further: Sequence[Override] = ()) -> ResolvedRecipe:
        return resolve(composition, [*given, *further], {**(other or machine).facts(), "run.demo": demo})

    return Recipe(decide(False), dict(objects or {}), decide, device)


def _is_name(dataset: Any) -> bool:
    """Whether a data set is given by its name, or several by theirs."""
    names = dataset if isinstance(dataset, list) and dataset else [dataset]
    return all(isinstance(name, (str, Path, type(None))) for name in names)


def _without_paths(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def lookup(name: str) -> tuple[str, str, str | Mapping[str, Any]]:
    """Return name, origin and content of the recipe `name`, opened."""
    source = registry.find(name)
    return source.name, source.origin, source.read()
