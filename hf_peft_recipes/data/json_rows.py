"""JSON to records: one value a line, or one list of rows a file, with every value's own place."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_peft_recipes.data.records import Record, opened, record, text_problem
from hf_peft_recipes.errors import UserError

_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_BLANK = re.compile(r"[ \t\r\n]*")


class _RefusedError(ValueError):
    """JSON in form, but with something in it that cannot stand in a row."""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _RefusedError(f"column {twice!r} stands twice")
    return row


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        _refuse(text)
    return value


def _refuse(text: str) -> None:
    raise _RefusedError(f"{text} is no number that JSON knows")


# Made once: json.loads with any of these arguments makes a decoder at every call, which takes longer than a short row.
_STRICT = json.JSONDecoder(object_pairs_hook=_without_duplicates, parse_constant=_refuse, parse_float=_finite)
_LENIENT = json.JSONDecoder()


def line_record(place: str, line: bytes) -> Record | None:
    """Return one line of a JSON Lines file as a record, None when it is blank."""
    if not line or line.isspace():
        return None
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return Record(place, None, text_problem(line.decode(errors="surrogateescape")))
    try:
        return _checked(place, text, _STRICT.decode(text))
    except (ValueError, RecursionError) as error:
        return Record(place, None, text_problem(text) or _reason(error))


def _checked(place: str, text: str, row: Any) -> Record:
    if _SURROGATE_ESCAPE.search(text):
        # A pair of them is one character and fine; a half is a str that no tokenizer takes.
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = ord(error.object[error.start])
            return Record(place, None, f"\\u{half:04x} is half of a surrogate pair, which no text holds")
    return record(place, row)


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"broken JSON: {error.msg} (column {error.colno})"
    if isinstance(error, _RefusedError):
        return str(error)
    return f"broken JSON: {'nested too deeply' if isinstance(error, RecursionError) else error}"


def is_json_lines(path: Path) -> bool:
    """Return whether a `.json` file is really JSON Lines: its first line is an object, and more lines follow."""
    with opened(path) as file:
        lines = (line for line in file if line.strip())
        first = next(lines, b"").removeprefix(b"\xef\xbb\xbf")
        if not first.lstrip().startswith(b"{") or not next(lines, b""):
            return False
    try:
        return isinstance(_LENIENT.decode(first.decode()), dict)
    except (ValueError, RecursionError):
        return False


@dataclass(frozen=True)
class JsonChunk:
    """A JSON file: a list of rows, or an object with such a list under `data`."""

    path: Path

    def records(self) -> Iterator[Record]:
        """Return an iterator over the rows; the text is read whole, the rows one by one.

        Raises:
            UserError: the file is no JSON, or its top level is no list of rows.
        """
        with opened(self.path) as file:
            text = file.read().decode("utf-8-sig", errors="surrogateescape")
        yield from _Reading(self.path.name, text).records()


class _Reading:
    """One pass over the text of a JSON file."""

    def __init__(self, name: str, text: str) -> None:
        self._name, self._text = name, text
        self._at, self._line, self._counted = 0, 1, 0

    def records(self) -> Iterator[Record]:
        first = self._next()
        if not first:
            return
        if first == "[":
            yield from self._list()
        elif first == "{":
            yield from self._object()
        else:
            raise self._no_list()
        if self._next():
            raise self._broken("Extra data")

    def _object(self) -> Iterator[Record]:
        self._at += 1
        seen = False
        if self._next() == "}":
            raise self._no_list()
        while True:
            key = self._value(_LENIENT)
            if not isinstance(key, str):
                raise self._broken("Expecting property name enclosed in double quotes")
            self._expect(":")
            if key == "data" and self._next() == "[":
                if seen:
                    raise UserError(f"{self._place()}: 'data' stands twice")
                seen = True
                yield from self._list()
            else:
                self._value(_LENIENT)
            if self._next() == "}":
                self._at += 1
                break
            self._expect(",")
        if not seen:
            raise self._no_list()

    def _list(self) -> Iterator[Record]:
        self._at += 1
        if self._next() == "]":
            self._at += 1
            return
        while True:
            self._next()
            place, start = self._place(), self._at
            try:
                row, self._at = _STRICT.raw_decode(self._text, start)
                text = self._text[start : self._at]
                bad = text_problem(text)
                yield Record(place, None, bad) if bad else _checked(place, text, row)
            except json.JSONDecodeError as error:
                raise self._broken(error.msg, error.pos) from None
            except (ValueError, RecursionError) as error:
                # In form it is JSON: the lenient decoder finds where it ends.
                self._value(_LENIENT)
                yield Record(place, None, _reason(error))
            if self._next() == "]":
                self._at += 1
                return
            self._expect(",")

    def _value(self, decoder: json.JSONDecoder) -> Any:
        self._next()
        try:
            value, self._at = decoder.raw_decode(self._text, self._at)
        except json.JSONDecodeError as error:
            raise self._broken(error.msg, error.pos) from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self._place()}: {_reason(error)}") from None
        return value

    def _next(self) -> str:
        found = _BLANK.match(self._text, self._at)
        self._at = found.end() if found else self._at
        return self._text[self._at : self._at + 1]

    def _expect(self, character: str) -> None:
        if self._next() != character:
            raise self._broken(f"Expecting {character!r}")
        self._at += 1

    def _place(self) -> str:
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return f"{self._name}:{self._line}"

    def _broken(self, message: str, position: int | None = None) -> UserError:
        position = self._at if position is None else position
        line = self._text.count("\n", 0, position) + 1
        reason = text_problem(self._text) or f"broken JSON: {message}"
        if position >= len(self._text):
            reason += "; the file ends here"
        return UserError(f"{self._name}:{line}: {reason}")

    def _no_list(self) -> UserError:
        return UserError(
            f'{self._name}: a list of rows is wanted at the top level, or {{"data": [...]}}; '
            f"one row a line is a file that ends in .jsonl"
        )
