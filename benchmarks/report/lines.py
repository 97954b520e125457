"""Result files that hold a JSON line a cell: read with their provenance, and cells named as people read them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report.pieces import off, share
from benchmarks.report.provenance import Provenance, join, read_provenance
from hf_peft_recipes.bench.suite import Line, read_lines

CELL_HEADINGS = ("recipe", "size", "tokens", "checkpointing", "documents")


def read_results(path: Path) -> tuple[list[Line], Provenance] | None:
    """Return the lines of a file and where their figures come from; None where there is no file.

    Args:
        path: of the file.

    Raises:
        UserError: a line that is no result, one of another schema, or one without its provenance.
    """
    lines = read_lines(path)
    if not lines:
        return None
    parts = [read_provenance(line, f"{path.name}, line {number}") for number, line in enumerate(lines, 1)]
    return lines, join(path.name, parts)


def done(lines: Sequence[Line]) -> list[Line]:
    """Return the lines of cells that ran through."""
    return [line for line in lines if line["status"] == "done"]


def cell_words(cell: Mapping[str, Any]) -> list[str]:
    """Return what CELL_HEADINGS say of a cell of `bench`."""
    checkpointing = "on" if cell["checkpointing"] else "off"
    return [cell["recipe"], cell["shape"], f"{cell['length']:,}", checkpointing, cell["lengths"]]


def cell_label(cell: Mapping[str, Any], documents: bool = True) -> str:
    """Return a cell of `bench` in one phrase: `lora s, 512 tokens, checkpointing`.

    Args:
        cell: of a line.
        documents: whether it says that they are not of full length.
    """
    words = [f"{cell['recipe']} {cell['shape']}", f"{cell['length']:,} tokens"]
    words += ["checkpointing"] if cell["checkpointing"] else []
    words += [f"{cell['lengths']} documents"] if documents and cell["lengths"] != "full" else []
    return ", ".join(words)


def how_far(lines: Sequence[Line], errors: Sequence[float], within: float) -> str:
    """Return how many plans are near, and how far off all of them and the worst are.

    Args:
        lines: of the cells.
        errors: of each, as a share of what was measured.
        within: what is near.
    """
    inside = sum(abs(error) <= within for error in errors)
    at = max(range(len(errors)), key=lambda place: abs(errors[place]))
    mean = share(statistics.mean(map(abs, errors)))
    return (
        f"{inside} of {len(errors)} within {within * 100:.0f} %, {mean} off on average, {off(errors[at])} at worst"
        f" ({cell_label(lines[at]['cell'])})"
    )


def listed(words: Sequence[str]) -> str:
    """Return `a, b and c`, each once."""
    once = list(dict.fromkeys(words))
    return " and ".join([", ".join(once[:-1]), once[-1]] if len(once) > 1 else once)
