"""How fast recipes train: `throughput.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.report.lines import CELL_HEADINGS, cell_label, cell_words, done, how_far, read_results
from benchmarks.report.palette import BLACK, colours_of, plain
from benchmarks.report.pieces import NOTHING, Block, Plot, Section, Table, number, share, spread, wrap
from hf_peft_recipes.bench.suite import Line

PHASES = ("start", "data", "load", "train", "evaluate", "save")
_RATES = ("tokens/s", "with loss/s", "samples/s", "step s (p10–p90)", "MFU", "HFU")
_PLANS = {"planned tokens/s": "tokens_per_second", "timed plan tokens/s": "timed_tokens_per_second"}
WITHIN = 0.05
_TOLD = (0, 3, 4)
"""Of those, what the README tells."""


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
    headings = [*CELL_HEADINGS, *_RATES, *_PLANS, *(f"{phase} s" for phase in PHASES)]
    table = Table(provenance, headings, [_row(line) for line in lines])
    timed = [line for line in done(lines) if line["figures"]]
    plot = None
    if timed:
        seen = "Tokens a second of each cell as bars, what was planned as marks: from rates, and from a timed step."
        plot = Plot(provenance, f"{name}.png", seen, (8, 1.6 + 0.45 * len(timed)), partial(draw, timed))
    text = (
        "Real tokens, padding left out, after warm-up. MFU is the arithmetic that the model asks for, HFU what was"
        " executed, both as a share of this machine's rate of matrix products. The seconds at the right are those of"
        " each phase of the whole run: `start` from the process's beginning, imports included, `train` with warm-up."
    )
    told = zip(_labels(timed), (_speed(line["figures"]) for line in timed), strict=True)
    rows = [[label, *(speed[at] for at in _TOLD)] for label, speed in told]
    short = Table(provenance, ["cell", *(_RATES[at] for at in _TOLD)], rows)
    known = [line for line in timed if line["planned"].get("timed_tokens_per_second")]
    near = ""
    if known:
        how = how_far(known, errors(known), WITHIN)
        near = f" A plan that times a step (`plan --data --measure`) says them before: {how}."
    block = Block(provenance, f"Tokens a second, padding left out, of whole runs on packed documents.{near}", short)
    return Section(f"Throughput{provenance.halves}", wrap(text), table, plot, block)


def _labels(lines: Sequence[Line]) -> list[str]:
    """Return what each cell is called: its documents too, where they are not alike in all."""
    several = len({line["cell"]["lengths"] for line in lines}) > 1
    return [cell_label(line["cell"], documents=several) for line in lines]


def _row(line: Line) -> list[str]:
    if line["status"] != "done":
        empty = [NOTHING] * (len(_RATES) + len(_PLANS) + len(PHASES) - 1)
        return [*cell_words(line["cell"]), line["status"], *empty]
    phases = line["measured"]["phases"]
    seconds = [number(phases[phase]["seconds"] if phase in phases else None, 1) for phase in PHASES]
    # Cells that ran beside each other have no figures of speed.
    speed = _speed(line["figures"]) if line["figures"] else [NOTHING] * len(_RATES)
    plans = [number(line["planned"].get(key)) for key in _PLANS.values()]
    return [*cell_words(line["cell"]), *speed, *plans, *seconds]


def errors(lines: Sequence[Line]) -> list[float]:
    """Return by how much the plan with a timed step is off, as a share of what was measured.

    Args:
        lines: of cells that have both.
    """
    planned = (line["planned"]["timed_tokens_per_second"] for line in lines)
    return [plan / line["figures"]["tokens_per_second"] - 1 for plan, line in zip(planned, lines, strict=True)]


def _speed(figures: Mapping[str, Any]) -> list[str]:
    ends = figures["step_seconds_percentiles"]
    steps = f"{figures['step_seconds']:.2f} ({spread(ends['10'], ends['90'], lambda value: number(value, 2))})"
    rates = [
        number(figures["tokens_per_second"]),
        number(figures["supervised_tokens_per_second"]),
        number(figures["documents_per_second"], 1),
    ]
    return [*rates, steps, share(figures["mfu"]), share(figures["hfu"])]


def draw(lines: Sequence[Line], figure: Any) -> None:
    """Draw a bar a cell, and a mark where the plan said it would end.

    Args:
        lines: of cells that have figures of speed.
        figure: of matplotlib.
    """
    axes = figure.add_subplot()
    colours = colours_of([line["cell"]["recipe"] for line in lines])
    places = range(len(lines))
    rates = [line["figures"]["tokens_per_second"] for line in lines]
    bars = axes.barh(places, rates, height=0.65, color=[colours[line["cell"]["recipe"]] for line in lines])
    for bar, rate in zip(bars, rates, strict=True):
        # At the foot of the bar: at its end stand the marks.
        at = (0, bar.get_y() + bar.get_height() / 2)
        axes.annotate(
            number(rate), at, (4, 0), textcoords="offset points", va="center", fontsize=8, color="white", weight="bold"
        )
    for (label, key), mark in zip(_PLANS.items(), "DX", strict=True):
        found = [(line["planned"].get(key), place) for place, line in zip(places, lines, strict=True)]
        if known := [pair for pair in found if pair[0]]:
            axes.plot(
                *zip(*known, strict=True), mark, color="white", markeredgecolor=BLACK, markersize=7,
                label=label.removesuffix(" tokens/s"), linestyle="none",
            )  # fmt: skip
    if axes.get_legend_handles_labels()[1]:
        figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    axes.set_yticks(places, _labels(lines), fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("tokens/s")
    plain(axes, "x")
