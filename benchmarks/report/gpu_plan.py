"""Planned against allocated bytes on a GPU: `gpu/plan.jsonl`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.memory import WITHIN
from benchmarks.report.lines import CELL_HEADINGS, cell_words, done, how_far, read_results
from benchmarks.report.pieces import NOTHING, Block, Section, Table, mib, off, wrap
from hf_peft_recipes.bench.suite import Line


def report(path: Path, name: str) -> Section | None:
    """Return what is told of the file; None where there is none, or one of a dry run.

    Args:
        path: of the result file.
        name: of the section; there is no plot.

    Raises:
        UserError: a line of another schema, or without its provenance.
    """
    found = read_results(path)
    if found is None or any(line.get("dry_run") for line in found[0]):
        return None
    lines, provenance = found
    headings = [*CELL_HEADINGS, "planned MiB", "allocated MiB", "off"]
    table = Table(provenance, headings, [_row(line) for line in lines])
    compared = [line for line in done(lines) if line["compared"]["off"] is not None]
    text = f"Planned bytes of tensors against those that torch's allocator counted: {_errors(compared)}."
    return Section("A GPU's memory: planned and allocated", wrap(text), table, None, Block(provenance, text))


def _row(line: Line) -> list[str]:
    if line["status"] != "done":
        return [*cell_words(line["cell"]), NOTHING, line["status"], NOTHING]
    compared = line["compared"]
    told = NOTHING if compared["off"] is None else off(compared["off"])
    return [*cell_words(line["cell"]), mib(compared["planned"]), mib(compared["allocated"]), told]


def _errors(lines: Sequence[Line]) -> str:
    return how_far(lines, [line["compared"]["off"] for line in lines], WITHIN) if lines else "no run has a figure yet"
