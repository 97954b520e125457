"""A cell's training in a process of its own, under the same watch whoever trains."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_peft_recipes.fresh_process import Finished, run_module

# The worker reads this too, and imports nothing heavy before a contender that wants to be first.
if TYPE_CHECKING:
    from hf_peft_recipes.bench.cell import Execute, Record


@dataclass(frozen=True)
class Work:
    """What the process trains."""

    recipe: str = "lora"
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of our run, by the names of its flags; other contenders take from them what they know."""
    contender: str = "ours"
    """One of `contenders.BUILDERS`."""
    warmup: int = 0
    """Steps that count for nothing."""
    profiled: bool = False
    """Look at the last steps kernel by kernel."""
    seeded: bool = False
    """Start LoRA from weights that are the same for every contender, B not zero."""
    best: bool = False
    """Let the contender run as it is fastest, not as it is matched."""

    @property
    def accumulation(self) -> int:
        """Micro-batches of a step."""
        return int(self.options.get("gradient_accumulation_steps", 1))


def watched(work: Work, paths: Sequence[str] = ()) -> Execute:
    """Return what runs a cell without evaluating and saving: training alone, watched.

    Args:
        work: recipe and options of the cell take the place of its own.
        paths: folders whose packages go before the installed ones.
    """

    def execute(recipe: str, options: Mapping[str, Any], folder: Path) -> tuple[Finished, Record | None]:
        return run_task("train", asdict(work) | {"recipe": recipe, "options": dict(options)}, folder, paths)

    return execute


def run_task(
    task: str, given: Mapping[str, Any], folder: Path, paths: Sequence[str] = ()
) -> tuple[Finished, Record | None]:
    """Return the finished process of one of `worker.TASKS`, and what it found; None where it did not end well.

    Args:
        task: by name.
        given: to it, as JSON.
        folder: where it may write.
        paths: see `watched`.
    """
    asked, answer = folder / "asked.json", folder / "answer.json"
    asked.write_text(json.dumps(given), encoding="utf-8")
    finished = run_module("benchmarks.gpu.worker", task, str(asked), str(answer), paths=paths)
    if finished.returncode or not answer.is_file():
        return finished, None
    found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return finished, found
