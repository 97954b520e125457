"""Work done in a fork of a process that has imported everything: seconds less than a process of its own takes."""

import ctypes
import os
import pickle
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

_BECOME_REAPER = 36
"""PR_SET_CHILD_SUBREAPER of linux/prctl.h: what a child leaves behind becomes a child of this process."""
_LAST_SECONDS = 2.0
"""That what a child started may take to end after it."""


@dataclass(frozen=True)
class Ended:
    """How a fork ended."""

    code: int
    """Its exit code; minus the signal's number where one ended it."""
    said: str
    """Its standard output and error."""
    orphans: int
    """Processes that it left running."""
    value: Any = None
    """What its work returned, None where it did not get that far."""


def split(watch: Callable[[int], None] | None = None, limit_seconds: float = 120.0) -> Ended | None:
    """Fork, which a process with a single thread may; return None in the fork, and here how it ended, once it has.

    Args:
        watch: is called in this process with the fork's process id while it runs.
        limit_seconds: after which it is killed; what it said tells it, and its code is -9.
    """
    # What a child leaves behind becomes a child of this process, so that it is seen.
    ctypes.CDLL(None).prctl(_BECOME_REAPER, 1, 0, 0, 0)
    sys.stdout.flush()
    sys.stderr.flush()
    numbers = random.getstate()
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            # Python draws other numbers in a fork; this one is to go on as its parent would have.
            random.setstate(numbers)
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            return None
        if watch:
            watch(child)
        code, late = _awaited(child, limit_seconds)
        orphans = _orphans()
        said.seek(0)
        return Ended(code, said.read().decode("utf-8", "replace") + ("\ntimed out" if late else ""), orphans)


def leave(code: int) -> NoReturn:
    """End a fork; nothing of its parent is run on the way out."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def forked(work: Callable[[], Any], watch: Callable[[int], None] | None = None, limit_seconds: float = 120.0) -> Ended:
    """Return how `work` ended, done in a fork.

    Args:
        work: what it returns must be picklable; a `SystemExit` is the fork's exit code.
        watch: as `split` has it.
        limit_seconds: as `split` has it.
    """
    with tempfile.TemporaryFile() as returned:
        ended = split(watch, limit_seconds)
        if ended is None:
            code = code_of(lambda: pickle.dump(work(), returned))
            returned.flush()
            leave(code)
        returned.seek(0)
        pickled = returned.read()
        return Ended(ended.code, ended.said, ended.orphans, pickle.loads(pickled) if pickled else None)


def code_of(work: Callable[[], object]) -> int:
    """Return the exit code of work that is done now, as Python would end with it; a fault's traceback is printed."""
    try:
        work()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _awaited(child: int, limit_seconds: float) -> tuple[int, bool]:
    """Return the code of a child, and whether it had to be killed."""
    until, late, pause = time.monotonic() + limit_seconds, False, 0.001
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), late
        if time.monotonic() > until and not late:
            late = True
            os.kill(child, signal.SIGKILL)
        time.sleep(pause)
        pause = min(pause * 1.5, 0.02)


def _orphans() -> int:
    """Return how many processes an ended child left running, and end them; this process is their parent now."""
    until = time.monotonic() + _LAST_SECONDS
    while time.monotonic() < until:
        try:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.01)
        except ChildProcessError:
            return 0
    processes = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
    left = [process for process in processes if _parent(process) == os.getpid()]
    for process in left:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    return len(left)


def _parent(process: int) -> int:
    try:
        told = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except OSError:
        return 0
    # What stands in brackets is a name, with whatever is in it.
    return int(told.rpartition(")")[2].split()[1])
