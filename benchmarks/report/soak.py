"""A run that is killed and resumed again and again: `soak.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.report.pieces import Block, Section, Table, number, wrap
from benchmarks.report.provenance import read_provenance
from benchmarks.report.records import read_record


def report(path: Path, name: str) -> Section | None:
    """Return what is told of the file; None where there is none.

    Args:
        path: of the result file.
        name: of the section.

    Raises:
        UserError: a file of another schema, or without its provenance.
    """
    if (record := read_record(path)) is None:
        return None
    provenance = read_provenance(record, path.name)
    headings = ("kills", "seed", "steps", "steps to a checkpoint", "steps done again", "same weights", "same losses")
    same = ["yes" if record[name] else "no" for name in ("same_weights", "same_losses")]
    figures = [number(record[name]) for name in ("cycles", "seed", "steps", "save_steps", "steps_lost")]
    table = Table(provenance, headings, [[*figures, *same]])
    return Section(
        "A run killed again and again", wrap(_sentence(record)), table, None, Block(provenance, _sentence(record))
    )


def _sentence(record: Mapping[str, Any]) -> str:
    end = (
        "with the very weights and losses" if record["same_weights"] and record["same_losses"] else "with other weights"
    )
    return (
        f"Killed by SIGKILL {number(record['cycles'])} times in a row at random moments and gone on with each time, a"
        f" run of {number(record['steps'])} steps ended {end} of the one that was let alone;"
        f" {number(record['steps_lost'])} steps were done again."
    )
