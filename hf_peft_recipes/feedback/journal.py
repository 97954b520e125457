"""A file of records that only grows: whole lines, on disk before anybody goes on, one writer at a time."""

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from hf_peft_recipes.data.json_rows import line_record
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.feedback.record import BadRecordError, FeedbackRecord, read_record
from hf_peft_recipes.redaction import redact
from hf_peft_recipes.results import open_confided

JOURNAL_FILE = "feedback.jsonl"


class Journal:
    """Feedback in a file; several processes may write to it, each record at once."""

    def __init__(self, path: Path) -> None:
        """Args:
        path: of the file, which need not be there yet.
        """
        self.path = path
        self._known = _Known()

    def append(self, records: Iterable[FeedbackRecord]) -> int:
        """Write records at the end; return how many. Those whose id stands there already are left out.

        A line that a crash left half written is cut off first: it was never told to anybody. Where the disk is full,
        the file is left as it was.

        Raises:
            UserError: what stands in the file cannot be read, or nothing can be written to it.
        """
        # Whatever gives the records may take its time, or fail: the file is not held meanwhile.
        given = list(records)
        with _held(self.path) as file:
            _heal(file)
            self._learn(file)
            fresh = dict[str, FeedbackRecord]()
            for record in given:
                if record.id not in self._known.ids:
                    fresh.setdefault(record.id, record)
            text = "".join(f"{redact(record.to_json())}\n" for record in fresh.values())
            self._known.take(fresh, len(fresh), _write(file, text.encode()))
        return len(fresh)

    def read(self) -> list[FeedbackRecord]:
        """Return all records, in the order in which they were written; none where there is no file.

        An id that stands there twice, as in two files that were joined, counts once.

        Raises:
            UserError: a line that is no record, named by its number.
        """
        if not self.path.exists():
            return []
        found = dict[str, FeedbackRecord]()
        with self.path.open("rb") as file:
            for record in _read(file, self.path, 1):
                found.setdefault(record.id, record)
        return list(found.values())

    def _learn(self, file: IO[bytes]) -> None:
        """Take up what others wrote since the file was last seen; all of it, where it is another file by now."""
        told = os.fstat(file.fileno())
        if told.st_ino != self._known.inode or told.st_size < self._known.bytes:
            self._known = _Known(told.st_ino)
        file.seek(self._known.bytes)
        lines = 0
        for lines, line in enumerate(file, 1):
            if record := _record(line, self.path, self._known.lines + lines):
                self._known.ids.add(record.id)
        self._known.take((), lines, file.tell())


def _write(file: IO[bytes], content: bytes) -> int:
    """Write at the end of the file, all or nothing, and wait for the disk; return where the file ends then."""
    # Not through the file's buffer: what it could not write it would try to write again when it is closed.
    handle, end = file.fileno(), file.seek(0, os.SEEK_END)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(handle, left) :]
        os.fsync(handle)
    except BaseException:
        os.ftruncate(handle, end)
        raise
    return end + len(content)


class _Known:
    """What is known of a file: how far it was read, and the ids up to there."""

    def __init__(self, inode: int | None = None) -> None:
        self.inode = inode
        self.ids = set[str]()
        self.lines = 0
        self.bytes = 0

    def take(self, ids: Iterable[str], lines: int, end: int) -> None:
        self.ids.update(ids)
        self.lines += lines
        self.bytes = end


def _read(file: IO[bytes], path: Path, first: int) -> Iterator[FeedbackRecord]:
    for number, line in enumerate(file, first):
        # Without an end its writer is still at it, or was ended in the middle.
        whole = line.endswith(b"\n") or _is_record(line)
        if whole and (record := _record(line, path, number)):
            yield record


def _record(line: bytes, path: Path, number: int) -> FeedbackRecord | None:
    try:
        return parse_line(line)
    except BadRecordError as error:
        raise UserError(f"{path.name}:{number}: {error}") from None


def parse_line(line: bytes) -> FeedbackRecord | None:
    """Return the record that a line holds, None where it is blank.

    Raises:
        BadRecordError: it holds something else.
    """
    found = line_record("", line.rstrip(b"\r\n"))
    if found is None:
        return None
    if found.row is None:
        raise BadRecordError(found.problem)
    return read_record(found.row)


@contextmanager
def _held(path: Path) -> Iterator[IO[bytes]]:
    """Open the file for reading and writing, alone as long as the block runs."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        with open(path, "a+b", opener=open_confided) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
            if is_new:
                _keep_name(path.parent)
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be written: {error.strerror or error}") from None


def _keep_name(folder: Path) -> None:
    """Bring the names in a folder to disk: a new file is lost with its name where the power fails."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _heal(file: IO[bytes]) -> None:
    """End the last line where it lacks its end but is a record; cut it off where it is a part of one."""
    size = file.seek(0, os.SEEK_END)
    if not size:
        return
    file.seek(size - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    content = file.read()
    whole = content.rfind(b"\n") + 1
    if _is_record(content[whole:]):
        _write(file, b"\n")
    else:
        file.truncate(whole)


def _is_record(line: bytes) -> bool:
    try:
        return parse_line(line) is not None
    except BadRecordError:
        return False
