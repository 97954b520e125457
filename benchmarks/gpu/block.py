"""Contenders in turns on the same work, in processes of their own: A B A B, so that a drift meets both."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.place import Place
from benchmarks.gpu.process import Work, watched
from hf_peft_recipes.bench.cell import Cell, run_cell
from hf_peft_recipes.bench.suite import Line

WARMUP, STEPS, TURNS = 10, 30, 2
STEP_TOKENS = 8192
"""Of an optimizer step: enough that its own work does not weigh, few enough that forty of them take half a minute."""
_KEPT = ("status", "error", "measured", "figures", "planned")


@dataclass(frozen=True)
class Block:
    """One comparison."""

    recipe: str
    shape: str
    length: int
    contenders: tuple[str, ...]
    """The first is what the others are held against."""
    checkpointing: bool = False
    warmup: int = WARMUP
    steps: int = STEPS
    turns: int = TURNS
    best: bool = False
    """Each at its fastest, instead of matched settings."""
    lengths: str = "full"
    """Of documents, one of `rows.LENGTHS`."""

    @property
    def name(self) -> str:
        """`lora-8b-4096-off-trl_best`."""
        words = [self.recipe, self.shape, str(self.length), "on" if self.checkpointing else "off"]
        words += [self.lengths] if self.lengths != "full" else []
        words += self.contenders[1:]
        return "-".join([*words, *(["best"] if self.best else [])])

    def cell(self) -> Cell:
        """Return the work as a cell: what our run of it is."""
        accumulation = max(1, STEP_TOKENS // self.length) if self.shape != "tiny" else 1
        overrides = {
            "per_device_train_batch_size": 1, "gradient_accumulation_steps": accumulation, "warmup_steps": 0,
            "learning_rate": 2e-4 if self.recipe != "full" else 2e-5,
        }  # fmt: skip
        return Cell(
            self.recipe, self.shape, self.length, self.checkpointing, self.lengths, self.steps, self.warmup, scored=0,
            overrides=overrides,
        )  # fmt: skip


def run_block(block: Block, place: Place, sites: Mapping[str, str] | None = None) -> Line:
    """Return the line of a comparison: every run, and what they come to.

    Args:
        block: to run.
        place: where.
        sites: contender to the folder of its packages.
    """
    runs: list[dict[str, Any]] = []
    away: dict[str, str] = {}
    line: Line = {}
    for turn in range(1, block.turns + 1):
        for contender in block.contenders:
            if contender in away:
                continue
            paths = [site] if (site := (sites or {}).get(contender)) else []
            work = Work(
                contender=contender, warmup=block.warmup, seeded=block.recipe != "full", best=block.best
            )  # fmt: skip
            found = run_cell(block.cell(), place.scratch, watched(work, paths))
            if found["status"] == "unavailable":
                away[contender] = found["error"]
                continue
            line = line or {key: value for key, value in found.items() if key not in (*_KEPT, "name", "cell")}
            runs.append({"contender": contender, "turn": turn, **{key: found[key] for key in _KEPT if key in found}})
    line |= {"runs": runs, "unavailable": away, "compared": compare(runs, block.contenders)}
    return line | {"status": _status(runs, away)}


def compare(runs: Sequence[Mapping[str, Any]], contenders: Sequence[str]) -> dict[str, Any]:
    """Return medians and spread of each contender over its turns, and how it stands to the first one.

    Args:
        runs: of a block.
        contenders: in their order.
    """
    compared: dict[str, Any] = {}
    done = {name: [run for run in runs if run["contender"] == name and run["status"] == "done"] for name in contenders}
    for name, mine in done.items():
        if not mine:
            continue
        rates = [run["figures"]["tokens_per_second"] for run in mine]
        measured = [run["measured"] for run in mine]
        peaks = [found["peaks"]["allocated_bytes"] or found["peaks"]["host_bytes"] for found in measured]
        compared[name] = {
            "tokens_per_second": statistics.median(rates),
            "tokens_per_second_of_turns": rates,
            "step_seconds": statistics.median(run["figures"]["step_seconds"] for run in mine),
            "step_seconds_percentiles": [run["figures"]["step_seconds_percentiles"] for run in mine],
            "peak_bytes": max(peaks),
            "attention": measured[0]["attention"],
        }  # fmt: skip
        if (first := compared.get(contenders[0])) and name != contenders[0]:
            ours = done[contenders[0]][0]["measured"]
            compared[name] |= {
                "times_as_fast": compared[name]["tokens_per_second"] / first["tokens_per_second"],
                "times_the_memory": compared[name]["peak_bytes"] / first["peak_bytes"],
                "same_tokens": measured[0]["series"]["tokens"] == ours["series"]["tokens"],
                "loss_difference": largest_difference(measured[0]["step_losses"], ours["step_losses"]),
                "norm_difference": largest_difference(measured[0]["gradient_norms"], ours["gradient_norms"]),
            }  # fmt: skip
    return compared


def largest_difference(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Return the largest relative difference of two series, step by step; None where their lengths differ."""
    if len(left) != len(right) or not left:
        return None
    return max(abs(one - other) / max(abs(other), 1e-9) for one, other in zip(left, right, strict=True))


def _status(runs: Sequence[Mapping[str, Any]], away: Mapping[str, str]) -> str:
    """Return `done` where every contender ran, or ran out of memory; `partial` where one is not there."""
    if any(run["status"] == "failed" for run in runs) or not runs:
        return "failed"
    return "partial" if away else "done"
