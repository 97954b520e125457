"""Being asked to end: signals and a time limit, and when the process may be taken at its word.

A scheduler sends a signal and some time later kills. What is loaded, scored or sent is given up at once; training ends
after the step that it is at, with a checkpoint. So the block that trains is `deferred`, and asks between two steps.
"""

import math
import os
import re
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hf_peft_recipes.errors import PreemptedError, UserError

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""What schedulers and terminals send; Slurm's `--signal=USR1@600` is the third."""
CLOCKS = signal.SIGUSR1
"""The one that this process sends itself when its time is over."""
SAME_PRESS_SECONDS = 1.0
"""A terminal and a launcher both hand on one Ctrl-C: what comes sooner is the same one."""
STARTED_VARIABLE = "HF_PEFT_RECIPES_STARTED"
"""Set for processes that are started on behalf of another: since when its time counts, in seconds since 1970."""

_POLL_SECONDS = 0.5
_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_DURATION = re.compile("".join(rf"(?:(\d+(?:\.\d+)?){unit})?" for unit in _UNITS))


class _Watch:
    """What this process was asked, and whether it has been told to whoever runs in it."""

    def __init__(self) -> None:
        self.depth = 0
        """Blocks of `watching` that are open."""
        self.deferrals = 0
        self.clear()

    def clear(self) -> None:
        """Forget what was asked."""
        self.reason = ""
        """Why the process is to end; empty while nobody has asked."""
        self.raised: weakref.ref[PreemptedError] | None = None
        """The error that was made of it; it is gone where something has swallowed it."""
        self.interrupted_at = 0.0
        self.limit = ""
        """The time limit that has passed, in words."""
        self.stage = ""
        """What is being done, as in `while loading`."""

    @property
    def is_told(self) -> bool:
        """Return whether the error is on its way, or has arrived."""
        return self.raised is not None and self.raised() is not None

    @property
    def is_lost(self) -> bool:
        """Return whether the error was raised, and the block goes on all the same."""
        return self.raised is not None and not self.is_told and bool(self.depth) and not self.deferrals

    def error(self) -> PreemptedError:
        """Return a new error."""
        return answer(f"preempted{self.stage and f' {self.stage}'} ({self.reason})", self.reason)


_watch = _Watch()


def parse_duration(text: str) -> float:
    """Return the seconds of `90s`, `45m`, `2h50m`, `1d2h`, or of a plain number.

    Raises:
        UserError: it is none of these, or no time at all.
    """
    word = text.strip().lower()
    found = _DURATION.fullmatch(word)
    if re.fullmatch(r"\d+(\.\d+)?", word):
        seconds = float(word)
    elif word and found:
        seconds = sum(float(part or 0) * size for part, size in zip(found.groups(), _UNITS.values(), strict=True))
    else:
        raise UserError(f"--max_time {text!r}: a time is wanted, as 90s, 45m, 2h50m or 1d2h")
    if seconds <= 0:
        raise UserError(f"--max_time {text!r}: more than nothing is wanted")
    return seconds


def process_age() -> float:
    """Return the seconds since this process began, or the one on whose behalf it was started."""
    if started := os.environ.get(STARTED_VARIABLE):
        return max(0.0, time.time() - float(started))
    import psutil

    return max(0.0, time.time() - float(psutil.Process().create_time()))


@contextmanager
def watching(max_seconds: float | None = None, spent_seconds: float = 0.0) -> Iterator[None]:
    """Listen to `SIGNALS` in the block, and to a time limit; afterwards all is as it was.

    Blocks may stand in each other. Only the main thread can listen; elsewhere, and for signals that the process was
    started to ignore, nothing changes.

    Args:
        max_seconds: after which the process is asked to end; None for never.
        spent_seconds: of them, before the block.

    Raises:
        PreemptedError: the process was asked to end, outside of `deferred`.
        KeyboardInterrupt: by a second Ctrl-C, anywhere.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former, stop = {}, threading.Event()
    ends_at = math.inf if max_seconds is None else time.monotonic() + max_seconds - spent_seconds
    limit = "" if max_seconds is None else f"time limit of {shown_duration(max_seconds)}"
    clock = threading.Thread(target=_keep_time, args=(stop, ends_at, limit), daemon=True)
    # Neither beginning nor end is to be cut short.
    _watch.deferrals += 1
    try:
        if _watch.depth == 0:
            # The clock sends SIGUSR1.
            wanted = [one for one in SIGNALS if one is CLOCKS or signal.getsignal(one) is not signal.SIG_IGN]
            former = {one: signal.signal(one, _asked) for one in wanted}
        _watch.depth += 1
        clock.start()
        with _listening():
            yield
    finally:
        stop.set()
        # Its signal must not come once nobody listens: it would end the process.
        clock.join()
        _watch.depth -= 1
        for one, handler in former.items():
            signal.signal(one, handler)
        if _watch.depth == 0:
            _watch.clear()
        _watch.deferrals -= 1


@contextmanager
def _listening() -> Iterator[None]:
    _watch.deferrals -= 1
    try:
        if _watch.reason and not _watch.is_told and not _watch.deferrals:
            raise _watch.error()
        yield
    finally:
        _watch.deferrals += 1


@contextmanager
def deferred() -> Iterator[None]:
    """Let the block come to its end, or to where it asks by `requested`, before it is told that the process is to end.

    Raises:
        PreemptedError: at the end of the block, where the process was asked meanwhile and nobody was told.
    """
    asked_before = bool(_watch.reason)
    _watch.deferrals += 1
    try:
        yield
    finally:
        _watch.deferrals -= 1
    # Another error may have taken the place of what was asked before: it must not be lost over this.
    if _watch.reason and not asked_before and not _watch.is_told and not _watch.deferrals:
        raise _watch.error()


def requested() -> str:
    """Return why the process was asked to end, `SIGTERM`, or an empty text."""
    return _watch.reason


def answer(message: str, reason: str) -> PreemptedError:
    """Return the error by which the block that runs is told; it is not told once more.

    Args:
        message: of the error.
        reason: as `requested` gives it.
    """
    error = PreemptedError(message, reason)
    _watch.raised = weakref.ref(error)
    return error


def settle() -> None:
    """Note that what was asked is being done without an error: the block is about to end."""
    _watch.raised = None


def doing(stage: str) -> None:
    """Note what is being done from now on, for the error of whoever asks meanwhile.

    Args:
        stage: `while loading`.
    """
    _watch.stage = stage


def shown_duration(seconds: float) -> str:
    """Return seconds as they are given: `2h50m`."""
    parts, rest = [], round(seconds)
    for unit, size in _UNITS.items():
        count, rest = divmod(rest, size)
        parts += [f"{count}{unit}"] if count else []
    return "".join(parts) or f"{seconds:g}s"


def _keep_time(stop: threading.Event, ends_at: float, limit: str) -> None:
    """Ask the main thread to end when its time is over, and again where the error was swallowed.

    What is raised in a finalizer is lost, and some libraries catch all that is raised while they are imported.
    """
    while not stop.wait(max(0.0, min(_POLL_SECONDS, ends_at - time.monotonic()))):
        is_over = time.monotonic() >= ends_at
        if is_over:
            _watch.limit, ends_at = limit, math.inf
        if is_over or _watch.is_lost:
            # A signal wakes it from whatever it waits for.
            signal.pthread_kill(threading.main_thread().ident or 0, CLOCKS)


def _asked(number: int, frame: FrameType | None) -> None:
    """Note a request, and raise its error where nothing needs to come to an end first."""
    now = time.monotonic()
    if number == signal.SIGINT:
        if _watch.interrupted_at and now - _watch.interrupted_at >= SAME_PRESS_SECONDS:
            raise KeyboardInterrupt
        _watch.interrupted_at = _watch.interrupted_at or now
    if not _watch.reason:
        limit = _watch.limit if number == CLOCKS else ""
        _watch.reason = limit or signal.Signals(number).name
    if not _watch.deferrals and not _watch.is_told:
        raise _watch.error()
