"""What it costs that no run is lost: `checkpoints.jsonl`."""

from __future__ import annotations

from pathlib import Path

from benchmarks.report.lines import done, listed, read_results
from benchmarks.report.pieces import NOTHING, Block, Section, Table, mib, number, wrap
from hf_peft_recipes.bench.suite import Line

_HEADINGS = ("what", "recipe", "model", "MiB", "way", "turns", "median ms", "ratio", "of processor time", "aimed at")
_TEXT = (
    "A checkpoint as upstream writes it, the same with its files brought to disk afterwards, and as this package does:"
    " beside, synced, listed with digests, renamed. `sealed` is the time until it stands in its place; training waits"
    " for a part of that alone, until the files are written, and goes on while they are sealed: beside a GPU for"
    " nothing, on a processor that trains at its expense. A step of upstream's trainer, and of this package's with all"
    " its guards. The ways take turns in one process; a ratio is of medians."
)
_WHAT = {"checkpoint": "sealed, waited for", "step": "guarded"}
"""The way of this package, by what is measured."""
_SENTENCE = {
    "checkpoint": "Training waits for a checkpoint {} times as long as upstream's takes.",
    "step": "A step with all guards takes {} times as long as upstream's.",
}


def report(path: Path, name: str) -> Section | None:
    """Return what is told of the file; None where there is none.

    Args:
        path: of the result file.
        name: of the section.

    Raises:
        UserError: a line of another schema, or without its provenance.
    """
    found = read_results(path)
    if found is None:
        return None
    lines, provenance = found
    measured = done(lines)
    table = Table(provenance, _HEADINGS, [row for line in measured for row in _rows(line)])
    told = [
        sentence.format(listed([_told(line) for line in measured if line["cell"]["kind"] == kind]))
        for kind, sentence in _SENTENCE.items()
        if any(line["cell"]["kind"] == kind for line in measured)
    ]
    return Section("Never losing a run", wrap(_TEXT), table, None, Block(provenance, " ".join(told)))


def _told(line: Line) -> str:
    cell = line["cell"]
    return f"{number(line['ratios'][_WHAT[cell['kind']]], 2)} ({cell['recipe']} {cell['model']})"


def _rows(line: Line) -> list[list[str]]:
    cell, rows = line["cell"], []
    for way, median in line["medians"].items():
        processor = line.get("processor", {}).get("ratios", {}).get(way)
        aim = number(line["target"], 2) if way == _WHAT[cell["kind"]] else NOTHING
        rows.append(
            [
                cell["kind"], cell["recipe"], cell["model"], mib(line.get("bytes")), way,
                str(len(line["seconds"][way])), number(median * 1e3, 1), number(line["ratios"][way], 3),
                number(processor, 3), aim,
            ]
        )  # fmt: skip
    return rows
