"""One cell of a benchmark: a run of a recipe on a shape, in a fresh process, and the line that it leaves."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hf_peft_recipes.api import Recipe, resolve_recipe
from hf_peft_recipes.bench.figures import figures_of
from hf_peft_recipes.bench.rows import find_lengths, write_rows
from hf_peft_recipes.bench.shapes import EMBEDDED, SHAPES, find_shape, make_model
from hf_peft_recipes.device import detect_device
from hf_peft_recipes.errors import RecipeError
from hf_peft_recipes.fresh_process import Finished, outcome, run_verb
from hf_peft_recipes.measure.facts import host_facts, installed_versions
from hf_peft_recipes.results import RESULT_FILE
from hf_peft_recipes.spec import Override

SCHEMA_VERSION = 1
_OPTIMIZERS_IN_MANAGED_MEMORY = ("paged_",)

Record = Mapping[str, Any]
Execute = Callable[[str, Mapping[str, Any], Path], tuple[Finished, Record | None]]
"""(recipe, options, a folder of its own) -> the finished process, and the record of the run, where it left one."""


@dataclass(frozen=True)
class Cell:
    """What one cell runs."""

    recipe: str
    shape: str = EMBEDDED
    length: int = 1024
    """Tokens of a packed row, and of the longest document."""
    checkpointing: bool = False
    lengths: str = "full"
    """One of `rows.LENGTHS`."""
    steps: int = 6
    """Optimizer steps that are counted."""
    warmup: int = 2
    """Optimizer steps before those."""
    scored: int = 4
    """Held-out rows that are scored before and after, and at the last step."""
    quantized_files: bool = False
    """Whether the base lies in NF4 on the disk."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Further options of the run."""
    timed_plan: bool = False
    """Whether the speed is planned with its data and a timed step too, as `plan --data --measure` does."""

    @property
    def name(self) -> str:
        """`lora-135m-512-off`, with what is out of the ordinary behind it."""
        words = [self.recipe, self.shape, str(self.length), "on" if self.checkpointing else "off"]
        words += [self.lengths] if self.lengths != "full" else []
        words += ["nf4files"] if self.quantized_files else []
        words += [f"{key}={value}" for key, value in sorted(self.overrides.items())]
        return "-".join(words)

    def options(self, model: Path | str, rows: Path | str) -> dict[str, Any]:
        """Return the options of the run: what is measured, and nothing else that takes time.

        Args:
            model: folder of the base.
            rows: folder with `train.jsonl` and `test.jsonl`.
        """
        steps, scores = self.warmup + self.steps, self.scored > 0
        return {
            "model": str(model), "dataset": str(rows), "max_length": self.length, "max_steps": steps,
            "gradient_checkpointing": self.checkpointing, "evaluation.max_rows": self.scored,
            "data.validation_size": 0, "eval_strategy": "no", "certify": "off",
            "save_strategy": "steps" if scores else "no", "save_steps": steps, **self.overrides,
        }  # fmt: skip

    def resolve(self, model: Path, rows: Path | None = None) -> Recipe:
        """Return the recipe of the run on this machine, for a plan: without data every row is one full document.

        Args:
            model: folder of the base.
            rows: as `write` makes them, None to do without them.
        """
        options = self.options(model, rows or "rows")
        if rows is None and self.lengths == "full":
            del options["dataset"]
        return resolve_recipe(self.recipe, overrides_of(options))

    def write(self, rows: Path, batch: int) -> None:
        """Write the rows of the run.

        Args:
            rows: the folder that gets `train.jsonl` and `test.jsonl`.
            batch: packed rows of an optimizer step.
        """
        # Shorter documents share a packed row: there must be enough of them.
        number = batch * (self.warmup + self.steps) * (1 if self.lengths == "full" else 8)
        write_rows(rows / "train.jsonl", number, self.length, self.lengths)
        write_rows(rows / "test.jsonl", max(1, self.scored), self.length, self.lengths, seed=1)


def check_cell(cell: Cell) -> None:
    """Raise a UserError where the cell names a recipe, option, shape or lengths that are not there; makes nothing."""
    find_lengths(cell.lengths)
    if cell.shape != EMBEDDED:
        find_shape(cell.shape)
    cell.resolve(Path("model"))


def plan_cell(cell: Cell, model: Path) -> dict[str, Any]:
    """Return what the planner says of the cell on this machine: parts, phases, speed, in bytes and tokens a second.

    Documents that are not full are looked at, as `plan --data` does.

    Args:
        cell: to plan.
        model: folder of its base.
    """
    recipe = cell.resolve(model)
    try:
        if cell.lengths == "full":
            plan = recipe.plan()
        else:
            with tempfile.TemporaryDirectory() as rows:
                cell.write(Path(rows), _batch(recipe))
                plan = cell.resolve(model, Path(rows)).plan(data=True)
    except RecipeError as error:
        return {"error": str(error)}
    return {
        "parts": dict(plan.parts), "phases": dict(plan.phases), "total_bytes": plan.total_bytes,
        "tokens_per_second": plan.tokens_per_second, "bound": plan.bound,
    }  # fmt: skip


def used_optimizer(asked: str) -> str:
    """Return the optimizer that is measured in place of the one that a recipe asks for: itself, unless it is paged.

    The memory of paged optimizers is the driver's to move, and no peak of it is counted.
    """
    return "adamw_torch_fused" if asked.startswith(_OPTIMIZERS_IN_MANAGED_MEMORY) else asked


def train_verb(recipe: str, options: Mapping[str, Any], folder: Path) -> tuple[Finished, Record | None]:
    """Return the finished process of `train`, and its record.

    Args:
        recipe: by name.
        options: of the run.
        folder: where it may write.
    """
    # What is measured is the run; close to the card's memory it would be rehearsed first, and refused.
    # Fewer rows at a time than were asked for would be another cell.
    told = ("--no-rehearse", "--on_oom", "stop", "--output_dir", f"{folder}/out")
    finished = run_verb("train", recipe, *told, *_flags(options))
    return finished, _record(folder / "out")


def run_cell(cell: Cell, scratch: Path, execute: Execute = train_verb) -> dict[str, Any]:
    """Return the line of the cell: what it is, what was planned, what was measured, on what, and how it ended.

    Args:
        cell: to run.
        scratch: where models and rows are made; models that are there already are taken.
        execute: runs it, in a fresh process.

    Raises:
        UserError: an unknown recipe or shape.
    """
    model = make_model(scratch / "models", cell.shape, cell.quantized_files)
    recipe, planned = cell.resolve(model), plan_cell(cell, model)
    optimizer = str(recipe.resolved.value("training.optim"))
    line: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "name": cell.name,
        "cell": {**asdict(cell), "overrides": dict(cell.overrides)},
        "shape": SHAPES.get(cell.shape),
        "optimizer": {"asked": optimizer, "used": used_optimizer(optimizer)},
        "planned": planned,
        "load_average": os.getloadavg()[0],
    }
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        rows = Path(folder) / "rows"
        cell.write(rows, _batch(recipe))
        options = cell.options(model, rows) | {"optim": used_optimizer(optimizer)}
        if cell.timed_plan:
            line["planned"] |= {"timed_tokens_per_second": _timed_speed(cell.recipe, options)}
        finished, record = execute(cell.recipe, options, Path(folder))
    line |= outcome(finished, record)
    if record and line["status"] == "done":
        line["measured"] = {
            **record["measured"],
            "parameters": record["parameters"], "speed": record["speed"],
            "recompute": record["recompute"], "losses": record["loss_curve"],
        }  # fmt: skip
        line["figures"] = figures_of(recipe, model, line["measured"], cell.warmup)
    return line | circumstances()


def _batch(recipe: Recipe) -> int:
    """Return the packed rows of an optimizer step."""
    training = recipe.resolved.section("training") or {}
    return int(training["per_device_train_batch_size"]) * int(training["gradient_accumulation_steps"])


def _timed_speed(recipe: str, options: Mapping[str, Any]) -> float | None:
    """Return the tokens a second that a plan with a timed step says; None where it fails."""
    finished = run_verb("plan", recipe, "--data", "--measure", "--json", *_flags(options))
    if finished.returncode:
        return None
    rate: float = json.loads(finished.stdout)["tokens_per_second"]
    return rate


def circumstances() -> dict[str, Any]:
    """Return what a figure needs beside it: the hardware, the versions and the date."""
    return {
        "hardware": {"device": asdict(detect_device()), **host_facts(), "threads": os.environ.get("OMP_NUM_THREADS")},
        "versions": installed_versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _record(folder: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record


def overrides_of(options: Mapping[str, Any]) -> list[Override]:
    """Return options of a run as the overrides that its flags would be."""
    return [Override(key, _text(value), f"--{key}", is_text=True) for key, value in options.items()]


def _flags(options: Mapping[str, Any]) -> list[str]:
    return [word for key, value in options.items() for word in (f"--{key}", *_words(value))]


def _text(value: Any) -> str | tuple[str, ...]:
    """Return the value as the words of a flag."""
    words = _words(value)
    return words[0] if len(words) == 1 else tuple(words)


def _words(value: Any) -> list[str]:
    if isinstance(value, (list, tuple)):
        return [word for item in value for word in _words(item)]
    return [str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)]
