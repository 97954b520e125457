"""Logs of feedback that people have, of any file type: which column is what, and what a row of them says."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from hf_peft_recipes.data.columns import by_position, type_of
from hf_peft_recipes.data.corpus import SHOWN_BAD_ROWS
from hf_peft_recipes.data.formats import BadRowError, Example
from hf_peft_recipes.data.records import Record, Row
from hf_peft_recipes.data.sources import read_data
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.feedback.conversion.roles import Role, find_columns
from hf_peft_recipes.feedback.record import BadRecordError, FeedbackRecord, Origin, Turns, Writer, as_turns


@dataclass(frozen=True)
class LogRow:
    """One row of a log."""

    place: str
    values: Row
    columns: Mapping[str, str]
    """Role to column."""

    def get(self, role: str) -> Any:
        """Return the value of a role; None where there is no such column, or nothing in it."""
        value = self.values.get(self.columns[role]) if role in self.columns else None
        return None if isinstance(value, str) and not value.strip() else value

    def text(self, role: str) -> str | None:
        """Return the value of a role that is a text, a number written out; None where it has none.

        Raises:
            BadRowError: it is something else.
        """
        value = self.get(role)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)
        if value is not None and not isinstance(value, str):
            raise BadRowError(f"{self.columns[role]!r} is {type_of(value)}, not text")
        return value


@dataclass(frozen=True)
class Said:
    """What a row of a log comes to: one completion and what is said of it; or nothing, and why."""

    prompt: Turns = ()
    completion: str = ""
    told: Mapping[str, Any] = field(default_factory=dict)
    """`label`, `score`, `correction`."""
    model: str | None = None
    nothing: str = ""
    """Why there is nothing, in words that can be counted: `rows without a thumb`."""


Read = Callable[[Sequence[LogRow], str | None], Iterator[tuple[LogRow, list[Said] | BadRowError]]]
"""Rows, and the scale that the user gave, to what each of them says."""


@dataclass(frozen=True)
class LogFormat:
    """A kind of log."""

    name: str
    roles: tuple[Role, ...]
    needed: tuple[frozenset[str], ...]
    """Roles that must be there: all of one of these sets."""
    read: Read
    notes: Callable[[Sequence[LogRow], str | None], list[str]] | None = None
    """What was found out about all rows, for the user to know."""
    has_scale: bool = False


@dataclass(frozen=True)
class ImportRequest:
    """What can be chosen where a log is read."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """Role to column, where the user says so; the others are found by their names."""
    source: str | None = None
    """Who gave the feedback, by default `human`; a column of users adds the name: `human:ada`."""
    scale: str | None = None
    """Of ratings, `1-5`; None finds it."""
    drops: bool = False
    """Whether bad rows are left out and counted, in place of being an error."""


@dataclass(frozen=True)
class Imported:
    """Records made of a log, and what became of its rows."""

    records: list[FeedbackRecord]
    rows_in: int
    columns: Mapping[str, str]
    """Role to column."""
    left_out: Mapping[str, int]
    """What was left out, in words, to how many rows."""
    notes: list[str]


def read_log(layout: LogFormat, dataset: Any, request: ImportRequest) -> Imported:
    """Return the records of a log.

    Args:
        layout: of its rows.
        dataset: as `data.sources.read_data` takes it: a file, a folder, a Hub id; all of its splits are read.
        request: what the user says of it.

    Raises:
        UserError: nothing there, a column that is not, bad rows, no row that says anything.
    """
    if request.scale is not None and not layout.has_scale:
        raise UserError(f"--scale: {layout.name} have no scale")
    placed, names, label = read_placed(dataset, by_position(request.columns))
    columns = find_columns(layout.name, layout.roles, layout.needed, names, request.columns, label)
    rows = [LogRow(record.place, record.row, columns) for record in placed if record.row is not None]
    bad = [(record.place, record.problem) for record in placed if record.row is None]
    made, left_out = list[FeedbackRecord](), Counter[str]()
    for row, said in layout.read(rows, request.scale):
        try:
            if isinstance(said, BadRowError):
                raise said
            left_out.update(each.nothing for each in said if each.nothing)
            made += [_record(row, each, request.source or "human") for each in said if not each.nothing]
        except (BadRowError, BadRecordError) as error:
            bad.append((row.place, str(error)))
    notes = layout.notes(rows, request.scale) if layout.notes else []
    return imported(_with_ids(made), bad, left_out, len(placed), label, request.drops, columns, notes)


def read_placed(dataset: Any, headless: bool = False) -> tuple[list[Record], list[str], str]:
    """Return the rows of all splits of a data set with their places, its columns, and what it is called.

    Raises:
        UserError: it cannot be read, or has no row.
    """
    raw = read_data(dataset, headless=headless)
    names = list(dict.fromkeys(column for table in raw.splits.values() for column in table.columns))
    return [record for table in raw.splits.values() for record in table.records()], names, raw.name


def imported(
    made: list[FeedbackRecord], bad: Sequence[tuple[str, str]], left_out: Mapping[str, int], rows_in: int, label: str,
    drops: bool, columns: Mapping[str, str], notes: list[str],
) -> Imported:  # fmt: skip
    """Return what was read, where it is of use.

    Raises:
        UserError: bad rows that are not to be dropped, or no record.
    """
    if bad and not drops:
        raise _bad_rows(bad)
    counted = {**left_out, **({"bad rows": len(bad)} if bad else {})}
    if not made:
        reasons = ", ".join(f"{reason}: {number:,}" for reason, number in counted.items())
        raise UserError(f"{label}: no row says anything of an answer: {reasons}")
    return Imported(made, rows_in, columns, counted, notes)


def _bad_rows(bad: Sequence[tuple[str, str]]) -> UserError:
    shown = "; ".join(f"{place}: {reason}" for place, reason in bad[:SHOWN_BAD_ROWS])
    more = f"; and {len(bad) - SHOWN_BAD_ROWS} more" if len(bad) > SHOWN_BAD_ROWS else ""
    return UserError(f"{shown}{more} ({len(bad)} bad rows; `--on_bad_row drop` leaves them out, counted)")


def one_answer(example: Example) -> tuple[Turns, str]:
    """Return the prompt and the last answer of a conversation.

    Raises:
        BadRowError: there is no such answer, or a turn of the prompt is more than text.
    """
    if example.reference is None or example.messages[-1]["role"] != "assistant":
        raise BadRowError("the conversation ends with no answer")
    if not example.reference.strip():
        raise BadRowError("the answer is empty")
    return turns_of(example.before_reference), example.reference


def turns_of(messages: Sequence[Mapping[str, Any]]) -> Turns:
    """Return turns as a record has them.

    Raises:
        BadRowError: a turn is more than text.
    """
    try:
        return as_turns(messages)
    except BadRecordError as error:
        raise BadRowError(str(error)) from None


def _record(row: LogRow, said: Said, source: str) -> FeedbackRecord:
    user = row.text("user")
    return FeedbackRecord(
        prompt=said.prompt, completion=said.completion, source=Origin(f"{source}:{user}" if user else source),
        feedback=row.text("feedback"), model=Writer(base=said.model or row.text("model") or ""),
        time=_time(row), **said.told,
    )  # fmt: skip


def _time(row: LogRow) -> str:
    """Return when it was said; seconds since 1970 are read too, and what names no zone is taken for UTC."""
    value = row.get("time")
    if value is None:
        return ""
    try:
        if isinstance(value, (int, float)):
            # 1e11 seconds are the year 5138: what is larger counts milliseconds.
            moment = datetime.fromtimestamp(value / 1000 if abs(value) > 1e11 else value, UTC)
        else:
            moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value).strip())
    except (ValueError, OverflowError, OSError):
        raise BadRowError(f"{row.columns['time']!r} is {str(value)[:40]!r}, no time") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return moment.astimezone(UTC).isoformat()


def _with_ids(records: Iterable[FeedbackRecord]) -> list[FeedbackRecord]:
    """Return the records with ids of all they say: read again, a log adds nothing, a vote that came back does."""
    seen = Counter[str]()
    made = []
    for record in records:
        told = record.to_json()
        made.append(replace(record, id=hashlib.sha256(f"{told}{seen[told]}".encode()).hexdigest()[:16]))
        seen[told] += 1
    return made
