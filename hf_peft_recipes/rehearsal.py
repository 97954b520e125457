"""A rehearsal: two steps on the longest rows in a fresh process, with evaluation and a checkpoint, before the real run.

What does not fit shows in seconds instead of hours, and takes nothing with it: the process that runs out of memory is
not this one.
"""

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_peft_recipes.errors import UserError
from hf_peft_recipes.fresh_process import Finished, last_words, out_of_memory, run_verb
from hf_peft_recipes.plan import MemoryPlan
from hf_peft_recipes.results import RECIPE_FILE, RESULT_FILE, write_text
from hf_peft_recipes.spec import ResolvedRecipe, recipe_file

NEAR = 0.85
"""The share of a GPU's memory from which a plan is rehearsed without being asked for: closer than the plan may err."""
STEPS = 2
"""The optimizer's states are there from the second step on."""
PHASES = ("load", "train", "evaluate", "save")
_TOLD = ("--exact", "--longest", "--no-rehearse", "--on_oom", "stop")
"""Flags of its process: what does not fit is what is to be found out, and not to be made to fit."""


@dataclass(frozen=True)
class Rehearsal:
    """What a rehearsal found."""

    fits: bool
    measured: Mapping[str, int]
    """Phase to its peak in bytes: allocated on the GPU, else resident in host memory."""
    planned: Mapping[str, int]
    """Phase to what was planned, in bytes; empty where there is no plan."""
    reserved_bytes: int | None
    """Of the caching allocator, at its most; None without a GPU."""
    memory_bytes: int
    """Of the device."""
    seconds: float
    tokens_per_second: float | None
    """Of the second step, which knows no warm-up: a rough guess."""
    error: str = ""
    """Why it does not fit."""

    def shown(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {**vars(self), "measured": dict(self.measured), "planned": dict(self.planned)}


def is_due(plan: MemoryPlan) -> bool:
    """Return whether a run is rehearsed without being asked for: on a GPU, where the plan is close to its memory."""
    return plan.device.kind == "cuda" and plan.total_bytes >= NEAR * plan.device.memory_bytes


def shortened(recipe: ResolvedRecipe) -> dict[str, Any]:
    """Return what is set for the rehearsal of a recipe's run: one cycle, and nothing else that takes time."""
    accumulation = int(recipe.value("training.gradient_accumulation_steps"))
    return {
        "max_steps": STEPS, "gradient_accumulation_steps": min(2, accumulation), "eval_strategy": "steps",
        "eval_steps": STEPS, "save_strategy": "steps", "save_steps": STEPS, "certify": "off", "report_to": "none",
    }  # fmt: skip


def rehearse(recipe: ResolvedRecipe, plan: MemoryPlan) -> Rehearsal:
    """Return what two steps on the longest rows take, with their evaluation and checkpoint, in a process of its own.

    Args:
        recipe: of the run; its base and data are named, since objects do not go to another process.
        plan: of the rehearsal, on the device that it runs on.

    Raises:
        UserError: the run fails for another reason than memory; that reason.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as scratch:
        folder = Path(scratch) / "run"
        write_text(Path(scratch) / RECIPE_FILE, recipe_file(recipe))
        options = {**shortened(recipe), "output_dir": folder}
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        finished = run_verb("train", f"{scratch}/{RECIPE_FILE}", *_TOLD, *words)
        record = _read(folder / RESULT_FILE)
    measured = record.get("measured") or {}
    phases = measured.get("phases") or {}
    error = _error(finished, record)
    reserved = [cost["reserved_bytes"] for cost in phases.values() if cost["reserved_bytes"] is not None]
    return Rehearsal(
        not error,
        {phase: phases[phase]["allocated_bytes"] or phases[phase]["host_bytes"] for phase in PHASES if phase in phases},
        plan.phases, max(reserved, default=None), plan.device.memory_bytes, time.perf_counter() - started,
        measured.get("tokens_per_second"), error,
    )  # fmt: skip


def refusal(name: str, rehearsal: Rehearsal, plan: MemoryPlan) -> UserError:
    """Return the error that a run which does not fit ends with, with what would make it fit.

    Args:
        name: of the recipe.
        rehearsal: that failed.
        plan: of the run.
    """
    return UserError(
        f"{name} does not fit: its rehearsal on the longest rows ran out of memory after {rehearsal.seconds:.0f} s "
        f"({rehearsal.error}){advice_of(plan)}"
    )


def advice_of(plan: MemoryPlan) -> str:
    """Return what was planned for a run that ran out of memory, and what would fit: the end of a sentence."""
    fitting = [advice for advice in plan.advice if advice.fits]
    hint = f"; what would fit, says the plan: {' + '.join(fitting[0].names)} (--fit)" if fitting else ""
    planned, memory = plan.total_bytes / 2**30, plan.device.memory_bytes / 2**30
    return f"; planned were {planned:.2f} of {memory:.1f} GiB{hint}"


def _error(finished: Finished, record: Mapping[str, Any]) -> str:
    """Return why the process ran out of memory; empty where it did not.

    Raises:
        UserError: it failed for another reason.
    """
    if finished.returncode == 0:
        return ""
    said = str(record.get("error") or last_words(finished))
    if told := out_of_memory(finished, said):
        return f"in {_died_in(record['measured'])}: {told}" if record.get("measured") else told
    raise UserError(f"rehearsal: {said}")


def _died_in(measured: Mapping[str, Any]) -> str:
    """Return the phase that did not end, of `measured` in a failed run's record, which begins once all is loaded."""
    if "evaluate" not in measured["phases"]:
        return "evaluate"
    if measured["steps"] < STEPS:
        return "train"
    return "evaluate" if "save" in measured["phases"] else "evaluate or save"


def _read(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record
