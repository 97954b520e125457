"""Faults put into runs, and what became of them: `faults.json`, made by `python -m tests.faults`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report.pieces import Block, Section, Table, number, wrap
from benchmarks.report.provenance import read_provenance
from benchmarks.report.records import read_record

_COUNTED = ("injected", "went on", "stopped", "died", "wrong", "lost", "orphans")


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
    provenance, rows = read_provenance(record, path.name), record["counts"]
    headings = ("phase", "fault", "faults", "went on", "stopped", "died", "wrong states", "runs lost", "orphans")
    by_kind = list(dict.fromkeys(row["kind"] for row in rows))
    table = Table(provenance, headings, [[row["phase"], row["kind"], *_figures([row])] for row in rows])
    short = Table(
        provenance, headings[1:], [[kind, *_figures([row for row in rows if row["kind"] == kind])] for kind in by_kind]
    )
    return Section(
        "What faults do to a run", wrap(_text(record)), table, None, Block(provenance, _sentence(record), short)
    )


def _figures(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [number(sum(row[name] for row in rows)) for name in _COUNTED]


def _sum(record: Mapping[str, Any], name: str) -> int:
    return sum(row[name] for row in record["counts"])


def _sentence(record: Mapping[str, Any]) -> str:
    drawn = "every change of the disk" if record["drawn"] is None else f"{record['drawn']} changes of the disk a phase"
    return (
        f"{number(_sum(record, 'injected'))} faults, at {drawn} that a short run makes: runs lost"
        f" {_sum(record, 'lost')}, states that are neither the old one nor the new {_sum(record, 'wrong')}, processes"
        f" left {_sum(record, 'orphans')}."
    )


def _text(record: Mapping[str, Any]) -> str:
    changes = sum(sum(found.values()) for found in record["changes"].values())
    return (
        f"{_sentence(record)} The run makes {number(changes)} changes of the disk: files opened, written, synced,"
        " closed, renamed and removed, folders made. `no space` and `io error` fail one of them, `disk full` all from"
        " then on that take space. A loss of power undoes what no fsync had made last: contents, and names. Where a run"
        f" died or stopped, `--resume` went on from each of the {number(record['states'])} states that folders were in;"
        " what is not lost ended with the very weights of the undisturbed run."
    )
