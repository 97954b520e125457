"""How far the plan of memory is off: `memory.jsonl`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.memory import PHASES, WITHIN, errors
from benchmarks.report.lines import CELL_HEADINGS, cell_words, done, how_far, listed, read_results
from benchmarks.report.palette import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, plain
from benchmarks.report.pieces import MIB, NOTHING, Block, Plot, Section, Table, mib, off
from hf_peft_recipes.bench.suite import Line

STACK = {
    "libraries": (("libraries",), GREY),
    "weights": (("weights", "weights_quantized"), BLUE),
    "adapter, gradients, optimizer": (("adapters", "gradients", "optimizer"), GREEN),
    "activations": (("activations",), ORANGE),
    "logits": (("logits",), SKY),
    "heap and workspace": (("fragmentation", "workspace"), PURPLE),
}
"""What a bar is made of, from below: its name, parts of the plan, colour. What is in none of them is `other`."""
_OTHER = ("other", VERMILION)


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
    compared = [line for line in done(lines) if line["planned"].get("phases")]
    table = Table(
        provenance,
        [*CELL_HEADINGS, "measured MiB", "planned MiB", *PHASES],
        [_row(line) for line in lines],
    )
    plot = None
    if compared:
        seen = "Planned parts of the training peak as stacked bars, planned totals as a line, measured ones as marks."
        rows, columns = len(_recipes(compared)), len(_sizes(compared))
        plot = Plot(provenance, f"{name}.png", seen, (2 + 3.2 * columns, 1.4 + 2.3 * rows), partial(draw, compared))
    block = Block(provenance, _sentence(lines, compared))
    return Section(f"Memory: planned and measured{provenance.halves}", _summary(compared), table, plot, block)


def _row(line: Line) -> list[str]:
    phases = line["planned"].get("phases", {})
    planned = mib(phases.get("train"))
    if line["status"] != "done":
        return [*cell_words(line["cell"]), line["status"], planned, *[NOTHING] * len(PHASES)]
    told = [off(error) for error in errors(line).values()] if phases else [NOTHING] * len(PHASES)
    return [*cell_words(line["cell"]), mib(measured_bytes(line)), planned, *told]


def measured_bytes(line: Line) -> int:
    """Return the measured peak of training, of what the plan is held against: see `benchmarks.memory.errors`."""
    phase = line["measured"]["phases"]["train"]
    return int(phase["allocated_bytes"] or phase["host_bytes"])


def _summary(lines: Sequence[Line]) -> str:
    """Return a list with a line a phase."""
    told = ["A phase's figure is by how much its planned peak is above (+) or below (-) the measured one."]
    for phase in PHASES if lines else ():
        told.append(f"- {phase}: {_errors(lines, phase)}")
    return "\n".join([told[0], "", *told[1:]]).rstrip()


def _errors(lines: Sequence[Line], phase: str) -> str:
    """Return how many plans of a phase are near, and how far off all of them and the worst are."""
    return how_far(lines, [errors(line)[phase] for line in lines], WITHIN)


def _sentence(lines: Sequence[Line], compared: Sequence[Line]) -> str:
    if not compared:
        return f"Of {len(lines)} runs none has a figure yet."
    cells = [line["cell"] for line in compared]
    lengths = sorted({cell["length"] for cell in cells})
    largest = max(line["measured"]["parameters"]["total"] for line in compared) / 1e6
    both = " with and without checkpointing," if len({cell["checkpointing"] for cell in cells}) == 2 else ""
    told = (
        f"The planned peak of training against {len(compared)} real runs ({listed(_recipes(compared))};"
        f" {len(_sizes(compared))} sizes up to {largest:,.0f} million parameters; rows of"
        f" {listed([f'{length:,}' for length in lengths])} tokens;{both} `python -m benchmarks.memory`):"
        f" {_errors(compared, 'train')}."
    )
    missing = len(lines) - len(compared)
    told += f" {missing} more did not run to their end or have no plan." if missing else ""
    plans = sorted({line["planned_at"] for line in compared if line.get("planned_at")})
    return told + (f" Planned with the code of {listed(plans)}." if plans else "")


def _recipes(lines: Sequence[Line]) -> list[str]:
    return list(dict.fromkeys(line["cell"]["recipe"] for line in lines))


def _sizes(lines: Sequence[Line]) -> list[str]:
    return list(dict.fromkeys(line["cell"]["shape"] for line in lines))


def draw(lines: Sequence[Line], figure: Any) -> None:
    """Draw a field a recipe and size: a bar a cell, its planned total, and what was measured.

    Args:
        lines: of cells that ran through and have a plan.
        figure: of matplotlib.
    """
    recipes, sizes = _recipes(lines), _sizes(lines)
    fields = figure.subplots(len(recipes), len(sizes), sharey="col", squeeze=False)
    names = dict[str, Any]()
    tallest = {size: max(_heights([line for line in lines if line["cell"]["shape"] == size])) for size in sizes}
    for row, recipe in enumerate(recipes):
        for column, size in enumerate(sizes):
            axes = fields[row][column]
            here = [line for line in lines if (line["cell"]["recipe"], line["cell"]["shape"]) == (recipe, size)]
            # In the order of what changes: full rows first, then by length, without checkpointing first.
            here.sort(key=lambda line: (line["cell"]["lengths"] != "full", line["cell"]["length"]))
            names |= _bars(axes, here)
            axes.set_title(f"{recipe}, size {size}", fontsize=10)
            plain(axes, "y")
            if column == 0:
                axes.set_ylabel("MiB")
            if row == len(recipes) - 1:
                axes.set_xlabel("tokens a row (hatched: with checkpointing)", fontsize=8)
            axes.set_ylim(0, 1.1 * tallest[size])
    figure.legend(names.values(), names.keys(), loc="outside upper center", ncols=5, frameon=False, fontsize=9)


def _heights(lines: Sequence[Line]) -> list[float]:
    return [max(line["planned"]["phases"]["train"], measured_bytes(line)) / MIB for line in lines]


def _bars(axes: Any, lines: Sequence[Line]) -> dict[str, Any]:
    """Draw the bars of a field, pairs of a length beside each other; return what its legend names."""
    names, places, floors = dict[str, Any](), _places(lines), [0.0] * len(lines)
    grouped = {part for parts, _ in STACK.values() for part in parts}
    stack = {**STACK, _OTHER[0]: (sorted({p for line in lines for p in line["planned"]["parts"]} - grouped), _OTHER[1])}
    for name, (parts, colour) in stack.items():
        heights = [sum(line["planned"]["parts"].get(part, 0) for part in parts) / MIB for line in lines]
        if not any(heights):
            continue
        bars = axes.bar(places, heights, bottom=floors, color=colour, width=0.85, linewidth=0)
        for bar, line in zip(bars, lines, strict=True):
            bar.set(hatch="///" if line["cell"]["checkpointing"] else None, edgecolor="white")
        names[f"planned: {name}"] = bars[0]
        floors = [floor + height for floor, height in zip(floors, heights, strict=True)]
    planned = [line["planned"]["phases"]["train"] / MIB for line in lines]
    measured = [measured_bytes(line) / MIB for line in lines]
    (names["planned: total"],) = axes.plot(places, planned, "-", color=BLACK, linewidth=1.2)
    (names["measured"],) = axes.plot(
        places, measured, "D", color="white", markeredgecolor=BLACK, markersize=5, linestyle="none"
    )
    _length_labels(axes, lines, places)
    return names


def _places(lines: Sequence[Line]) -> list[float]:
    """Return where each bar stands: a gap between lengths."""
    places, place = list[float](), 0.0
    for before, line in zip([None, *lines], lines, strict=False):
        if before is not None:
            place += 1.0 if _group(before) == _group(line) else 1.6
        places.append(place)
    return places


def _group(line: Line) -> str:
    cell = line["cell"]
    return f"{cell['length']}" + (f"\n{cell['lengths']}" if cell["lengths"] != "full" else "")


def _length_labels(axes: Any, lines: Sequence[Line], places: Sequence[float]) -> None:
    groups = dict[str, list[float]]()
    for line, place in zip(lines, places, strict=True):
        groups.setdefault(_group(line), []).append(place)
    axes.set_xticks([statistics.mean(found) for found in groups.values()], groups.keys(), fontsize=8)
