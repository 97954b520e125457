"""Whether the same rows are the same training, however they are cut: `equivalence.jsonl`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.report.lines import done, read_results
from benchmarks.report.palette import GREY, colours_of, plain
from benchmarks.report.pieces import Block, Plot, Section, Table, wrap
from hf_peft_recipes.bench.suite import Line

_FIGURES = {"loss": "loss", "grad_norm": "gradient norm"}
_LEAST = 1e-9
"""Where a difference of none is drawn."""
_TEXT = (
    "The same 8 documents a step, of different lengths, in float32: padded, packed, in micro-batches, on two processes,"
    " with activation checkpointing, without this package's faster paths. Every step was fed the same documents, by"
    " their digest; the figures are by how much the loss and the gradient norm of any step are off, relative to the"
    " first way, at most. What differs is the order in which numbers are added up."
)


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
    measured = done(lines)
    headings = ["way", "steps", *(f"{label} off by" for label in _FIGURES.values()), "tolerance"]
    table = Table(provenance, headings, [_row(line) for line in measured])
    seen = (
        "On the left the losses of all ways, one line over the other; on the right by how much each is off at each "
        "step, on a logarithmic scale, all below the tolerance."
    )
    plot = Plot(provenance, f"{name}.png", seen, (10, 4.2), partial(draw, measured))
    worst = max(value for line in measured for value in line["differences"].values())
    told = (
        f"{len(measured)} ways to cut the same rows (padded, packed, accumulated, on two processes, checkpointed) have"
        f" losses and gradient norms that are {worst:.0e} off at most, relative, in {len(measured[0]['points'])} steps."
    )
    return Section("The same rows, cut otherwise", wrap(_TEXT), table, plot, Block(provenance, told))


def _row(line: Line) -> list[str]:
    off = [f"{line['differences'][name]:.1e}" for name in _FIGURES]
    return [line["name"], str(len(line["points"])), *off, f"{line['tolerance']:.0e}"]


def draw(lines: Sequence[Line], figure: Any) -> None:
    """Draw the losses, and by how much they are off.

    Args:
        lines: of ways; the first is what the others are held against.
        figure: of matplotlib.
    """
    losses, off = figure.subplots(1, 2)
    colours = colours_of([line["name"] for line in lines])
    reference = lines[0]["points"]
    steps = [point["step"] for point in reference]
    for at, line in enumerate(lines):
        # Each narrower than the one below it, or the last would be all that is seen.
        width = 1.2 + 1.6 * (len(lines) - 1 - at)
        values = [point["loss"] for point in line["points"]]
        losses.plot(steps, values, color=colours[line["name"]], linewidth=width, label=line["name"])
        if at:
            pairs = zip(line["points"], reference, strict=True)
            apart = [max(abs(one["loss"] / other["loss"] - 1), _LEAST) for one, other in pairs]
            off.plot(steps, apart, color=colours[line["name"]], marker="o", markersize=4, linewidth=1)
    off.axhline(lines[0]["tolerance"], color=GREY, linestyle="--")
    off.annotate(
        "tolerance", (steps[0], lines[0]["tolerance"]), (0, 4), textcoords="offset points", fontsize=8, color="#666666"
    )
    off.set_yscale("log")
    off.set_ylim(_LEAST / 2, lines[0]["tolerance"] * 10)
    losses.set_ylabel("loss")
    off.set_ylabel("loss off by, relative (10⁻⁹: not at all)")
    for axes in (losses, off):
        axes.set_xlabel("optimizer step")
        plain(axes, "both")
    losses.legend(fontsize=8, frameon=False)
