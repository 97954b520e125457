"""One cell of a benchmark: a run of a recipe on a shape, in a fresh process, and the line that it leaves."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
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
from hf_peft_recipes.fresh_process import Finished, last_words, out_of_memory, run_verb
from hf_peft_recipes.measure.facts import host_facts, installed_versions
from hf_peft_recipes.results import RESULT_FILE
from hf_peft_recipes.spec import Override

SCHEMA_VERSION = 1
_OPTIMIZERS_IN_MANAGED_MEMORY = ("paged_",)


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


def check_cell(cell: Cell) -> None:
    """Raise a UserError where the cell names a recipe, option, shape or lengths that are not there; makes nothing."""
    find_lengths(cell.lengths)
    if cell.shape != EMBEDDED:
        find_shape(cell.shape)
    _recipe(cell, Path("model"))


def plan_cell(cell: Cell, model: Path) -> dict[str, Any]:
    """Return what the planner says of the cell on this machine: parts, phases, speed, in bytes and tokens a second.

    Args:
        cell: to plan.
        model: folder of its base.
    """
    recipe = _recipe(cell, model)
    try:
        plan = recipe.plan()
    except RecipeError as error:
        return {"error": str(error)}
    return {
        "parts": dict(plan.parts), "phases": dict(plan.phases), "total_bytes": plan.total_bytes,
        "tokens_per_second": plan.tokens_per_second, "bound": plan.bound,
    }  # fmt: skip


def run_cell(cell: Cell, scratch: Path) -> dict[str, Any]:
    """Return the line of the cell: what it is, what was planned, what was measured, on what, and how it ended.

    Args:
        cell: to run.
        scratch: where models and rows are made; models that are there already are taken.

    Raises:
        UserError: an unknown recipe or shape.
    """
    model = make_model(scratch / "models", cell.shape, cell.quantized_files)
    recipe, planned = _recipe(cell, model), plan_cell(cell, model)
    training = recipe.resolved.section("training") or {}
    optimizer = str(training.get("optim"))
    further: dict[str, Any] = {}
    if optimizer.startswith(_OPTIMIZERS_IN_MANAGED_MEMORY):
        # Their memory is the driver's to move, and no peak of it is counted.
        further["optim"] = "adamw_torch_fused"
    batch = int(training["per_device_train_batch_size"]) * int(training["gradient_accumulation_steps"])
    number = batch * (cell.warmup + cell.steps) * (1 if cell.lengths == "full" else 8)
    line: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "name": cell.name,
        "cell": {**asdict(cell), "overrides": dict(cell.overrides)},
        "shape": SHAPES.get(cell.shape),
        "optimizer": {"asked": optimizer, "used": further.get("optim", optimizer)},
        "planned": planned,
        "load_average": os.getloadavg()[0],
    }
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        rows = Path(folder) / "rows"
        write_rows(rows / "train.jsonl", number, cell.length, cell.lengths)
        write_rows(rows / "test.jsonl", max(1, cell.scored), cell.length, cell.lengths, seed=1)
        options = cell.options(model, rows) | further | {"output_dir": f"{folder}/out"}
        words = [word for key, value in options.items() for word in (f"--{key}", *_words(value))]
        finished = run_verb("train", cell.recipe, *words)
        record = _record(Path(folder) / "out")
    line |= _outcome(finished, record)
    if record and line["status"] == "done":
        line["measured"] = record["measured"] | {
            "parameters": record["parameters"], "speed": record["speed"], "losses": record["loss_curve"]
        }  # fmt: skip
        line["figures"] = figures_of(recipe, model, line["measured"], cell.warmup)
    return line | {
        "hardware": {"device": asdict(detect_device()), **host_facts(), "threads": os.environ.get("OMP_NUM_THREADS")},
        "versions": installed_versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _recipe(cell: Cell, model: Path) -> Recipe:
    options = cell.options(model, "rows")
    if cell.lengths == "full":
        # Without data a plan takes every row for one document of the full length, which is what these are.
        del options["dataset"]
    given = [Override(key, _text(value), f"--{key}", is_text=True) for key, value in options.items()]
    return resolve_recipe(cell.recipe, given)


def _record(folder: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record


def _outcome(finished: Finished, record: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return how the run ended: `done`, `oom` or `failed`, and its last words."""
    if finished.returncode == 0 and record:
        return {"status": "done"}
    said = str((record or {}).get("error") or last_words(finished))
    starved = out_of_memory(finished, said)
    said = starved or said
    return {"status": "oom" if starved else "failed", "exit_code": finished.returncode, "error": said[-500:]}


def _text(value: Any) -> str | tuple[str, ...]:
    """Return the value as the words of a flag."""
    words = _words(value)
    return words[0] if len(words) == 1 else tuple(words)


def _words(value: Any) -> list[str]:
    if isinstance(value, (list, tuple)):
        return [word for item in value for word in _words(item)]
    return [str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)]
