"""CSV and TSV to records, row by row, with or without a head."""

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from hf_peft_recipes.data.records import Record, opened, text_problem
from hf_peft_recipes.errors import UserError

_LONGEST_NAME = 64
"""Characters; a first row with more in one field is no head but data."""

_LONGEST_FIELD = 2**31 - 1
"""What C's long holds everywhere; Python's own limit is 128 KiB."""


@dataclass(frozen=True)
class DelimitedChunk:
    """A file of delimited rows; the first one names the columns unless the file has no head."""

    path: Path
    delimiter: str
    quoted: bool = True
    """Whether a field may stand in double quotes; without that, a quote is a character like any other."""
    headless: bool = False
    """The first row is data: the columns are called 1, 2, 3 …, unless that row itself just counts the columns."""

    def records(self) -> Iterator[Record]:
        """Return an iterator over the rows as mappings of column to text.

        Raises:
            UserError: no head that can be used, a quote that is never closed.
        """
        with opened(self.path) as file:
            rows = self._rows(file)
            first = next(rows, None)
            if first is None:
                return
            place, head, problem = first
            if problem:
                raise UserError(f"{place}: {problem} (in the head, which names the columns)")
            names = head
            if (self.headless and not _counts(head)) or looks_like_data(head):
                names = [str(number) for number in range(1, len(head) + 1)]
                yield Record(place, dict(zip(names, head, strict=True)))
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise UserError(f"{place}: column {twice[0]!r} stands twice in the head")
            for place, fields, problem in rows:
                if not problem and len(fields) != len(names):
                    problem = (
                        f"the row has another number of fields than the head ({len(fields)} instead of {len(names)})"
                    )
                yield Record(place, None, problem) if problem else Record(place, dict(zip(names, fields, strict=True)))

    def _rows(self, file: IO[bytes]) -> Iterator[tuple[str, list[str], str]]:
        csv.field_size_limit(_LONGEST_FIELD)
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        lines = _Taken(text)
        reader = csv.reader(
            lines,
            delimiter=self.delimiter,
            strict=True,
            quoting=csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE,
        )
        while True:
            lines.taken.clear()
            place = f"{self.path.name}:{reader.line_num + 1}"
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if "unexpected end" in str(error):
                    raise UserError(f"{place}: a double quote is opened here and never closed") from None
                # An even number of quotes: what the mistake stands in ends with the line, and the next row is sound.
                if sum(line.count('"') for line in lines.taken) % 2:
                    raise UserError(f"{place}: {_quoting_mistake(error)}, and where the row ends is unclear") from None
                yield place, [], _quoting_mistake(error)
                continue
            if fields:
                yield place, fields, text_problem("".join(lines.taken))


class _Taken:
    """Lines of a file, with those that were taken for the row at hand."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self.taken: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.taken.append(line)
        return line


def csv_chunks(path: Path, headless: bool) -> list[DelimitedChunk]:
    """Return a CSV file as one chunk; a head without any comma may use semicolons or tabs, as spreadsheets do."""
    with opened(path) as file:
        head = file.readline().decode(errors="replace")
    delimiter = next((candidate for candidate in ",;\t" if candidate in head), ",")
    return [DelimitedChunk(path, delimiter, headless=headless)]


def tsv_chunks(path: Path, headless: bool) -> list[DelimitedChunk]:
    """Return a TSV file as one chunk, quoted or not, whichever reading leaves fewer rows broken.

    Both kinds are common and nothing in the file says which it is: spreadsheets quote, corpora of text do not.
    """
    chunk = DelimitedChunk(path, "\t", headless=headless)
    with opened(path) as file:
        if not any(line.startswith(b'"') or b'\t"' in line for line in file):
            return [replace(chunk, quoted=False)]
    plain = replace(chunk, quoted=False)
    return [plain if _broken(plain) < _broken(chunk) else chunk]


def _broken(chunk: DelimitedChunk) -> float:
    try:
        return sum(1 for record in chunk.records() if record.problem)
    except UserError:
        return float("inf")


def looks_like_data(head: list[str]) -> bool:
    """Return whether a first row is no head: one of its fields is longer than any name, or holds a line end."""
    return any(len(name) > _LONGEST_NAME or re.search(r"[\r\n]", name) for name in head)


def _counts(head: list[str]) -> bool:
    return any(head == [str(number + start) for number in range(len(head))] for start in (0, 1))


def _quoting_mistake(error: csv.Error) -> str:
    if "expected after" in str(error):
        return "text follows a closing double quote (one inside a quoted field is written twice)"
    return str(error)
