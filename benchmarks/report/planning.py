"""What plans cost: `planning.jsonl`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report.lines import read_results
from benchmarks.report.pieces import Block, Section, Table, number, spread, wrap
from hf_peft_recipes.bench.suite import Line


def report(path: Path, name: str) -> Section | None:
    """Return what is told of the file; None where there is none.

    Args:
        path: of the result file.
        name: of the plot's file; nothing is drawn of so few figures.

    Raises:
        UserError: a line of another schema, or without its provenance.
    """
    found = read_results(path)
    if found is None:
        return None
    lines, provenance = found
    headings = ("recipe", "size", "device", "way", "CPU s (range)", "s (range)")
    table = Table(provenance, headings, [_row(line) for line in lines])
    text = wrap("Whole processes of `plan`, from a `config.json` alone; the middle of the repeats, and their range.")
    whole, traced = (_slowest(lines, trace) for trace in (False, True))
    block = Block(
        provenance,
        f"A plan in closed form takes at most {_seconds(whole)} of processor time (of {_shape(whole)}), a traced one"
        f" {_seconds(traced)} ({_shape(traced)}).",
    )
    return Section("What a plan costs", text, table, None, block)


def _row(line: Line) -> list[str]:
    asked = line["question"]
    way = "trace" if asked["trace"] else "closed form"
    return [asked["recipe"], asked["shape"], asked["device"], way, _range(line["cpu_seconds"]), _range(line["seconds"])]


def _range(values: Sequence[float]) -> str:
    middle = number(statistics.median(values), 2)
    if len(values) == 1:
        return middle
    return f"{middle} ({spread(min(values), max(values), lambda value: number(value, 2))})"


def _slowest(lines: Sequence[Line], trace: bool) -> Line:
    asked = [line for line in lines if line["question"]["trace"] == trace]
    return max(asked, key=lambda line: statistics.median(line["cpu_seconds"]))


def _seconds(line: Line) -> str:
    return f"{number(statistics.median(line['cpu_seconds']), 2)} s"


def _shape(line: Line) -> str:
    return f"`{line['question']['recipe']}`, {line['question']['shape']}"
