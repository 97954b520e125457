"""A file of records that only grows: whole lines, on disk before anybody goes on, one writer at a time."""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from hf_peft_recipes.errors import UserError
from hf_peft_recipes.feedback.record import BadRecordError, FeedbackRecord, read_record
from hf_peft_recipes.redaction import redact

JOURNAL_FILE = "feedback.jsonl"


class Journal:
    """Feedback in a file; several processes may write to it, each record at once."""

    def __init__(self, path: Path) -> None:
        """Args:
        path: of the file, which need not be there yet.
        """
        self.path = path
        self._ids: set[str] = set()
        self._seen_bytes = 0
        """How far the ids of the file are known: what others write goes behind that."""

    def append(self, records: Iterable[FeedbackRecord]) -> int:
        """Write records at the end; return how many. Those whose id stands there already are left out.

        A line that a crash left half written is cut off first: it was never told to anybody.

        Raises:
            UserError: what stands in the file cannot be read.
        """
        with _held(self.path) as file:
            _cut_half_line(file)
            file.seek(self._seen_bytes)
            self._ids |= {record.id for record in _read(file, self.path)}
            fresh = list({record.id: record for record in records if record.id not in self._ids}.values())
            file.seek(0, os.SEEK_END)
            file.write("".join(f"{redact(record.to_json())}\n" for record in fresh).encode())
            file.flush()
            os.fsync(file.fileno())
            self._ids |= {record.id for record in fresh}
            self._seen_bytes = file.tell()
        return len(fresh)

    def read(self) -> list[FeedbackRecord]:
        """Return all records, in the order in which they were written; none where there is no file.

        Raises:
            UserError: a line that is no record, named by its number.
        """
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            return list(_read(file, self.path))


def _read(file: IO[bytes], path: Path) -> Iterator[FeedbackRecord]:
    for number, line in enumerate(file, 1):
        if not line.endswith(b"\n"):
            # Its writer is still at it, or was ended in the middle.
            return
        if line.strip():
            try:
                yield parse_line(line)
            except BadRecordError as error:
                raise UserError(f"{path.name}:{number}: {error}") from None


def parse_line(line: bytes) -> FeedbackRecord:
    """Return the record that a line holds.

    Raises:
        BadRecordError: it holds none.
    """
    try:
        values = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadRecordError(f"not UTF-8 (byte {error.start})") from None
    except ValueError as error:
        raise BadRecordError(f"broken JSON: {error}") from None
    return read_record(values)


@contextmanager
def _held(path: Path) -> Iterator[IO[bytes]]:
    """Open the file for reading and writing, alone as long as the block runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _cut_half_line(file: IO[bytes]) -> None:
    size = file.seek(0, os.SEEK_END)
    if not size:
        return
    file.seek(size - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    whole = file.read().rfind(b"\n") + 1
    file.truncate(whole)
