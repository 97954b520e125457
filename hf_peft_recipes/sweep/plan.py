"""What a sweep is, written down so that it goes on where it was cut off, and what can be refused before it begins."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_peft_recipes.errors import UserError, did_you_mean
from hf_peft_recipes.metric_facts import DEFINITIONS, LOWER_IS_BETTER
from hf_peft_recipes.results import RESULT_FILE, write_text
from hf_peft_recipes.spec import ResolvedRecipe, recipe_file
from hf_peft_recipes.spec.entries import GIVEN
from hf_peft_recipes.sweep.space import Dimension

SCHEMA_VERSION = 1
SWEEP_FILE = "sweep.json"
HELD_OUT_LOSS = "eval_loss"
"""Of the last evaluation while training, or of the best one where that checkpoint is kept."""

Decide = Callable[[Mapping[str, Any], str], ResolvedRecipe]
"""(settings by field, where they come from) -> the recipe of a run with them."""


@dataclass(frozen=True)
class Sweep:
    """What is searched, and by which measure."""

    recipe: str
    """Of the runs, as a YAML text, without what is searched."""
    name: str
    dimensions: tuple[Dimension, ...]
    metric: str
    seed: int

    @property
    def minimizes(self) -> bool:
        """Whether the metric is better when lower."""
        return self.metric in (HELD_OUT_LOSS, *LOWER_IS_BETTER)

    def settings(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Return the recipe's fields for the values that a trial was given."""
        return {dimension.key: dimension.value(asked[dimension.key]) for dimension in self.dimensions}


def make_sweep(decide: Decide, dimensions: tuple[Dimension, ...], metric: str) -> Sweep:
    """Return the sweep, each end of its space having been resolved.

    Args:
        decide: gives the recipe with further settings.
        dimensions: of the space.
        metric: `eval_loss`, or one of those that a run ends with.

    Raises:
        UserError: an unknown metric or field, one that stands twice or is given beside, a value that it cannot take.
    """
    known = [HELD_OUT_LOSS, *DEFINITIONS]
    if metric not in known:
        raise UserError(f"--metric {metric}: no such metric{did_you_mean(metric, known)} (known: {', '.join(known)})")
    base = decide({}, "")
    homes: dict[Any, str] = {}
    for dimension in dimensions:
        origin = f"--space {dimension.key}"
        for end in dimension.ends:
            placed = decide({dimension.key: dimension.value(end)}, origin)
        for path in (path for path, entry in placed.entries.items() if entry.origin == origin):
            if path in homes:
                raise UserError(f"--space: {homes[path]} and {dimension.key} are the same field")
            homes[path] = dimension.key
            if (given := base.entries.get(path)) and given.layer == GIVEN:
                raise UserError(f"{'.'.join(path)} is given (from {given.origin}) and searched; leave one of them out")
    if metric == HELD_OUT_LOSS and base.value("training.eval_strategy") in (None, "no"):
        raise UserError("--metric eval_loss is what evaluation gives while training runs; use --eval_strategy steps")
    return Sweep(recipe_file(base), base.name, dimensions, metric, int(base.value("training.seed") or 0))


def open_folder(folder: Path, sweep: Sweep) -> None:
    """Make the folder of the sweep, or go on in one that holds this very sweep.

    Raises:
        UserError: it holds a run, or another sweep.
    """
    path = folder / SWEEP_FILE
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output folder {str(folder)!r} is a file")
    if (folder / RESULT_FILE).exists():
        raise UserError(f"output folder {str(folder)!r} already holds a run; use another --output_dir")
    content = {"schema_version": SCHEMA_VERSION, **json.loads(json.dumps(asdict(sweep)))}
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: broken JSON: {error}") from None
    other = [key for key in content if found.get(key) != content[key]]
    if other:
        raise UserError(
            f"output folder {str(folder)!r} holds another sweep (its {', '.join(other)}); use another --output_dir"
        )
