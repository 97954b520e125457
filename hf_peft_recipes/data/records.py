"""What reading gives: records, each a row or the reason why there is none, in pieces that can be read apart."""

import gzip
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, cast

from hf_peft_recipes.errors import UserError

Row = Mapping[str, Any]

_NOT_DECODED = re.compile("[\udc80-\udcff]")
"""What bytes that are not UTF-8 become under Python's `surrogateescape`."""


class BadRowError(ValueError):
    """A row that was read but cannot be used, and why."""


@dataclass(frozen=True, slots=True)
class Record:
    """One row and where it stands, or the reason why what stands there is no row."""

    place: str
    """`chats.jsonl:1042` (lines count from 1), `chats.parquet:row 17` or `row 17 of split 'train'` (from 0, as an index
    into the data set would)."""
    row: Row | None
    problem: str = ""
    """Why there is no row; empty when there is one."""


class Chunk(Protocol):
    """A piece of a data set that can be pickled, sent to another process and read there."""

    def records(self) -> Iterator[Record]:
        """Return an iterator over the piece's records, from its beginning at every call.

        Raises:
            UserError: the piece cannot be read on.
        """


def record(place: str, row: Any) -> Record:
    """Return what was read at `place` as a record: a mapping is a row, anything else a problem."""
    if isinstance(row, Mapping):
        return Record(place, row)
    return Record(place, None, f"a row is a mapping of columns to values, not {type(row).__name__}")


def text_problem(text: str) -> str:
    """Return why a piece of a file that was decoded with `surrogateescape` is no text, or an empty string."""
    if "\0" in text:
        return "a NUL byte, which no text holds; is this another kind of file?"
    if not text.isascii() and (found := _NOT_DECODED.search(text)):
        return f"not UTF-8 (byte 0x{ord(found[0]) & 0xFF:02x}); convert the file"
    return ""


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Return the file opened for reading bytes, unpacked where its name ends in `.gz`.

    Raises:
        UserError: it cannot be read, then or later; the gzip data are broken or end too early.
    """
    packed = path.suffix.lower() == ".gz"
    try:
        with path.open("rb") as file:
            yield cast(IO[bytes], gzip.GzipFile(fileobj=file)) if packed else file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        reason = "end too early" if isinstance(error, EOFError) else "are broken"
        raise UserError(f"{path.name}: the gzip data {reason} ({error}); fetch or pack the file again") from None
    except OSError as error:
        raise UserError(f"{path.name}: cannot be read: {error.strerror or error}") from None
