"""The lock of a folder: one process at a time writes there, and a lock that a crash has left holds nobody up.

The system holds it (flock) and lets go of it however a process ends, so nothing depends on the file being removed;
that it is there and held by nobody tells of a process that did not come to its end.
"""

import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from hf_peft_recipes.errors import UserError

LOCK_FILE = "run.lock"
_LINGERING_SECONDS = 10.0
"""Of processes that read data for one that was killed: they hold on to its lock until they notice."""
_POLL_SECONDS = 0.1
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
"""What file systems say that cannot lock."""


@contextmanager
def sole_writer(folder: Path, what: str) -> Iterator[None]:
    """Hold a folder, which is made where it is not there, against other processes for the length of the block.

    Args:
        folder: that is written to. One that was made for the block, and is empty after it, is removed.
        what: is written there: `run`, `sweep`.

    Raises:
        UserError: another process holds it, with its number and machine; or it cannot be written to.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output folder {str(folder)!r} is a file")
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    handle = -1
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = _take(folder, what)
        except OSError as error:
            raise UserError(f"output folder {str(folder)!r} cannot be written: {error.strerror}") from None
        try:
            yield
        finally:
            # As long as it is held: then nobody else can have it. What cannot be removed is held by nobody.
            with suppress(OSError):
                (folder / LOCK_FILE).unlink(missing_ok=True)
    finally:
        if handle >= 0:
            # A disk that is full may say so now; the lock is let go of all the same.
            with suppress(OSError):
                os.close(handle)
        for parent in made:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()


def _take(folder: Path, what: str) -> int:
    """Return the handle of the folder's lock, which is held by this process from now on."""
    path = folder / LOCK_FILE
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(handle, folder)
            # Its holder removes the file at its end: what was opened just before is nobody's any more.
            if _is_at(handle, path):
                break
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
    if left := _holder(handle):
        print(f"{path}: left by {_named(left)}, which did not come to its end; going on", file=sys.stderr, flush=True)
    mine = {"what": what, "pid": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.now():%F %T}"}
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(mine).encode(), 0)
    return handle


def _lock(handle: int, folder: Path) -> None:
    """Let the system lock an open file for this process.

    Raises:
        UserError: another one has it.
    """
    until = time.monotonic() + _LINGERING_SECONDS
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = _holder(handle)
            if _is_gone(holder) and time.monotonic() < until:
                time.sleep(_POLL_SECONDS)
                continue
            raise UserError(
                f"a {holder.get('what', 'run')} is running in {str(folder)!r} ({_named(holder)}); "
                "use another --output_dir, or wait for its end"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            print(f"warning: {str(folder)!r} cannot be locked: {error.strerror}", file=sys.stderr, flush=True)
            return


def _holder(handle: int) -> dict[str, Any]:
    """Return what the process that holds the lock, or held it last, wrote of itself; empty where it wrote nothing."""
    try:
        found = json.loads(os.pread(handle, 4096, 0))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _named(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process"
    return f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}"


def _is_gone(holder: dict[str, Any]) -> bool:
    """Return whether a process of this machine has ended."""
    pid = holder.get("pid")
    if holder.get("host") != socket.gethostname() or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _is_at(handle: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    mine = os.fstat(handle)
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)
