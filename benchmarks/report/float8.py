"""What rounding the base to 8-bit floats changes: `float8.jsonl`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.report.lines import done, read_results
from benchmarks.report.palette import BLUE, VERMILION, plain
from benchmarks.report.pieces import NOTHING, Block, Plot, Section, Table, share, spread, wrap
from hf_peft_recipes.bench.suite import Line

WHOLE, ROUNDED = "lora", "lora_fp8"
"""The methods of a pair."""


@dataclass(frozen=True)
class Pair:
    """The two runs of a seed on a task: on the base as it is, and on the rounded one."""

    whole: Line
    rounded: Line

    @property
    def task(self) -> tuple[str, str, int]:
        """Base, data, steps."""
        cell = self.whole["cell"]
        return cell["model"], cell["dataset"], cell["steps"]

    @property
    def sides(self) -> tuple[Line, Line]:
        """Both, the whole one first."""
        return self.whole, self.rounded

    def moved(self, side: str) -> float:
        """Return by how much the held-out loss of the rounded one is above the other, `before` or `after`, in nats."""
        return self.rounded["metrics"][side]["loss"] - self.whole["metrics"][side]["loss"]

    def curve(self) -> list[tuple[int, float]]:
        """Return by how much the training loss of the rounded one is above the other, step by step."""
        pairs = zip(self.whole["losses"], self.rounded["losses"], strict=True)
        return [(step, other - loss) for (step, loss), (_, other) in pairs]


def report(path: Path, name: str) -> Section | None:
    """Return what is told of the file; None where there is none.

    Args:
        path: of the result file.
        name: of the plot's file, without its ending.

    Raises:
        UserError: a line of another schema, or without its provenance.
    """
    found = read_results(path)
    if found is None:
        return None
    lines, provenance = found
    pairs = paired(done(lines))
    headings = (
        "base", "data", "steps", "seed", "loss before", "rounded", "loss after", "rounded", "accuracy after", "rounded",
        "curves apart, mean", "at most",
    )  # fmt: skip
    table = Table(provenance, headings, [_row(pair) for pair in pairs])
    tasks = list(dict.fromkeys(pair.task for pair in pairs))
    seen = (
        "A row a task: on the left the training losses of both, a line a seed, lying over each other; on the right by "
        "how much the rounded one's is above the other's."
    )
    plot = Plot(provenance, f"{name}.png", seen, (9.5, 1 + 3 * len(tasks)), partial(draw, pairs)) if pairs else None
    told = " ".join(sentence([pair for pair in pairs if pair.task == task]) for task in tasks)
    block = Block(provenance, told or "No pair of runs ended with a figure yet.")
    return Section("A base in 8-bit floats", wrap(_TEXT), table, plot, block)


_TEXT = (
    "`lora_fp8` beside `lora`, from the same seed, on the same rows in the same order. Losses are in nats a token, on"
    " held-out rows; before is the base by itself, and so what rounding does to it. Curves apart: by how much the"
    " training losses of the same step differ, their amounts averaged, and the largest of them."
)


def paired(lines: Sequence[Line]) -> list[Pair]:
    """Return the runs of the same task and seed together, where both ran through."""
    found: dict[tuple[Any, ...], dict[str, Line]] = {}
    for line in lines:
        cell = line["cell"]
        key = (cell["model"], cell["dataset"], cell["steps"], cell["seed"])
        found.setdefault(key, {})[cell["method"]] = line
    return [Pair(both[WHOLE], both[ROUNDED]) for both in found.values() if both.keys() >= {WHOLE, ROUNDED}]


def _row(pair: Pair) -> list[str]:
    base, data, steps = pair.task
    cells = [base, data, str(steps), str(pair.whole["cell"]["seed"])]
    for side in ("before", "after"):
        cells += [_loss(line["metrics"][side]["loss"]) for line in pair.sides]
    cells += [share(line["metrics"]["after"].get("accuracy")) for line in pair.sides]
    apart = [abs(gap) for _, gap in pair.curve()]
    cells += [_loss(statistics.mean(apart)), _loss(max(apart))] if apart else [NOTHING] * 2
    return cells


def sentence(pairs: Sequence[Pair]) -> str:
    """Return what the pairs of a task come to: by how much losses move, beside how far seeds lie apart.

    Args:
        pairs: of one task, at least one.
    """
    base, data, steps = pairs[0].task
    seeds = [pair.whole["metrics"]["after"]["loss"] for pair in pairs]
    ends = {side: [pair.moved(side) for pair in pairs] for side in ("before", "after")}
    before, after = (spread(min(values), max(values), _change) for values in ends.values())
    accuracies = [[line["metrics"]["after"].get("accuracy") for line in pair.sides] for pair in pairs]
    told = f"{base} on {data}, {steps} steps, {len(pairs)} seeds: rounding moves the base's held-out loss by {before}"
    told += f" nats, and that after training by {after}, where seeds lie {max(seeds) - min(seeds):.4f} apart"
    if all(value is not None for pair in accuracies for value in pair):
        whole, rounded = (statistics.mean(values) for values in zip(*accuracies, strict=True))
        told += f"; mean accuracy {share(whole)} on the whole base, {share(rounded)} on the rounded one"
    return f"{told}."


def _loss(value: float) -> str:
    return f"{value:.4f}"


def _change(value: float) -> str:
    return f"{value:+.4f}"


def draw(pairs: Sequence[Pair], figure: Any) -> None:
    """Draw two fields a task: the losses of both, and by how much they differ.

    Args:
        pairs: at least one.
        figure: of matplotlib.
    """
    tasks = list(dict.fromkeys(pair.task for pair in pairs))
    for row, task in zip(figure.subplots(len(tasks), 2, squeeze=False), tasks, strict=True):
        here = [pair for pair in pairs if pair.task == task]
        for at, pair in enumerate(here):
            for line, colour, width in ((pair.whole, BLUE, 3.0), (pair.rounded, VERMILION, 1.0)):
                label = line["cell"]["method"] if at == 0 else None
                row[0].plot(*zip(*line["losses"], strict=True), color=colour, linewidth=width, label=label)
            row[1].plot(*zip(*pair.curve(), strict=True), linewidth=1, label=f"seed {pair.whole['cell']['seed']}")
        row[0].set(title=f"{task[0]} on {task[1]}", ylabel="training loss (nats)")
        row[1].set(title="rounded above whole", ylabel="nats")
        for axes in row:
            axes.set_xlabel("optimizer step")
            axes.legend(frameon=False, fontsize=8)
            axes.title.set_fontsize(10)
            plain(axes, "y")
