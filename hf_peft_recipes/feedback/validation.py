"""Files of feedback, line by line: what is a record, what is none and why, and what there is all in all."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_peft_recipes.data.records import opened
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.feedback.journal import parse_line
from hf_peft_recipes.feedback.record import BadRecordError, FeedbackRecord, OtherVersionError

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class BadLine:
    """A line that holds no record."""

    place: str
    """`feedback.jsonl:7`; lines count from 1."""
    reason: str


@dataclass(frozen=True)
class CheckedFile:
    """A file whose every line was looked at."""

    path: Path
    records: tuple[FeedbackRecord, ...]
    """In order, each id once."""
    bad: tuple[BadLine, ...]
    repeated: int
    """Lines that say what an earlier line with their id says."""


def check_file(path: Path) -> CheckedFile:
    """Return the records of a file, and every line that is none.

    Args:
        path: of a JSON Lines file, packed or not (`.gz`).

    Raises:
        UserError: there is no such file, it cannot be read, or all of it is of another schema version.
    """
    if not path.is_file():
        raise UserError(f"{str(path)!r}: no such file")
    found, lines, bad, repeated = dict[str, FeedbackRecord](), dict[str, int](), list[BadLine](), 0
    versions = set[str]()
    for number, line in _lines(path):
        try:
            record = parse_line(line)
            if record is None:
                continue
            if record.id not in found:
                found[record.id], lines[record.id] = record, number
            elif found[record.id] == record:
                repeated += 1
            else:
                raise BadRecordError(
                    f"the id {record.id!r} stands on line {lines[record.id]} already, with other words"
                )
        except BadRecordError as error:
            if isinstance(error, OtherVersionError):
                versions.add(str(error))
            bad.append(BadLine(f"{path.name}:{number}", str(error)))
    if not found and len(versions) == 1 and {line.reason for line in bad} == versions:
        raise UserError(f"{path.name}: {versions.pop()}")
    return CheckedFile(path, tuple(found.values()), tuple(bad), repeated)


def read_files(paths: Sequence[Path]) -> list[FeedbackRecord]:
    """Return the records of several files, in order, each id once.

    Raises:
        UserError: a file that cannot be read, a line that is no record, no record at all.
    """
    found = dict[str, FeedbackRecord]()
    for path in paths:
        checked = check_file(path)
        if checked.bad:
            first, more = checked.bad[0], len(checked.bad) - 1
            rest = f" (and {more} more lines; `feedback validate {path}` names them)" if more else ""
            raise UserError(f"{first.place}: {first.reason}{rest}")
        for record in checked.records:
            found.setdefault(record.id, record)
    if not found:
        raise UserError(f"no feedback in {', '.join(path.name for path in paths)}")
    return list(found.values())


def summarise(records: Sequence[FeedbackRecord]) -> dict[str, Any]:
    """Return what there is of records, rows, verdicts, sources, rounds and models, each with its number of records.

    A score is accepted where it is 1.
    """
    verdicts = Counter(record.is_accepted() for record in records)
    return {
        "records": len(records),
        "rows": len({record.row_id for record in records}),
        "accepted": verdicts[True],
        "rejected": verdicts[False],
        "corrected": sum(record.correction is not None for record in records),
        "refined": sum(record.refines is not None for record in records),
        "commented": sum(bool(record.feedback) for record in records),
        "sources": dict(Counter(" ".join((record.source.name, record.source.version)).strip() for record in records)),
        "rounds": dict(sorted(Counter(str(each.round) for each in records if each.round is not None).items())),
        "models": dict(Counter(_written_by(record) for record in records if record.model.base)),
    }


def _written_by(record: FeedbackRecord) -> str:
    model = record.model
    at = f"@{model.revision}" if model.revision else ""
    return f"{model.base}{at}" + (f" + {model.adapter}" if model.adapter else "")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            yield number, line.removeprefix(_BOM) if number == 1 else line
