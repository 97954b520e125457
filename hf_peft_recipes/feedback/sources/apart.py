"""A function in a process of its own, so that what hangs or crashes there ends that process and nothing else.

A timer of this process would not do: code that hangs inside C, as a regular expression does, lets no signal handler
run. The process is a fresh interpreter, as those of `data.workers` are, and is kept for as long as it answers.
"""

import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from typing import Any

from hf_peft_recipes.feedback.asking import SourceError
from hf_peft_recipes.scorers.arguments import told

_AT_A_TIME = 256
"""Items that are sent together: a message each would take longer than most checks."""
_START_SECONDS = 120.0
"""For an interpreter to start, and to import what the function needs."""
_ORPHANED_SECONDS = 60.0
"""Beyond the deadline the process ends itself: whoever started it is gone."""


class Apart:
    """A function that is asked about one thing after the other."""

    def __init__(self, make: Callable[[Any], Callable[[Any], Any]], job: Any, seconds: float) -> None:
        """Args:
        make: at the top level of a module; called over there with the job, it returns the function.
        job: that can be pickled.
        seconds: for one answer.
        """
        self._make, self._job, self._seconds = make, job, seconds
        self._running: tuple[subprocess.Popen[bytes], Connection[Any, Any]] | None = None
        self._ended: Callable[[], Any] = lambda: None

    def ask(self, items: Sequence[Any]) -> Iterator[Any]:
        """Yield what the function returns for each item, in order; a SourceError where it raised, hung or crashed.

        Raises:
            SourceError: the function cannot be made at all.
        """
        done = 0
        try:
            while done < len(items):
                if self._running is None:
                    self._start()
                some = items[done : done + _AT_A_TIME]
                self._send((some, self._seconds))
                for _ in some:
                    answer = self._receive(self._seconds)
                    done += 1
                    yield answer
                    if self._running is None:
                        break
        finally:
            # Who stops listening in the middle leaves answers behind that belong to nothing asked later.
            if done < len(items):
                self.close()

    def close(self) -> None:
        """End the process, if there is one; the next question starts another."""
        self._ended()
        self._running = None

    def _start(self) -> None:
        ours, theirs = Pipe()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        process = subprocess.Popen(
            # Without the working folder, in which a file may have the name of a module; a session of its own, since
            # Ctrl+C on the terminal is for whoever asks.
            [sys.executable, "-P", "-c", f"from {__name__} import work; work({theirs.fileno()})"],
            env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        theirs.close()
        self._running = process, ours
        self._ended = weakref.finalize(self, _end, process, ours)
        self._send((self._make, self._job))
        failure = self._receive(_START_SECONDS)
        if isinstance(failure, SourceError):
            self.close()
            raise failure

    def _send(self, message: Any) -> None:
        assert self._running is not None, "it was started"
        # Of a process that has ended there is nothing to receive either, which is where that is told.
        with suppress(OSError):
            self._running[1].send(message)

    def _receive(self, seconds: float) -> Any:
        assert self._running is not None, "it was started"
        process, connection = self._running
        try:
            if connection.poll(seconds):
                answer, failure = connection.recv()
                return SourceError(failure) if failure else answer
            failure = f"no answer within {seconds:g} s"
        except (EOFError, OSError):
            failure = f"its process ended ({_ending(process.wait())})"
        self.close()
        return SourceError(failure)


def work(handle: int) -> None:
    """Answer what comes in on a handle, until nobody is there any more."""
    connection: Connection[Any, Any] = Connection(handle)
    # What the function prints is for the user to see, and not for who reads this program's results.
    os.dup2(2, 1)
    with suppress(EOFError):
        make, job = connection.recv()
        function, failure = _tried(make, job)
        connection.send((None, failure))
        while function is not None:
            items, seconds = connection.recv()
            for item in items:
                # Nothing catches it: the system itself ends the process, whatever that is at.
                signal.setitimer(signal.ITIMER_REAL, seconds + _ORPHANED_SECONDS)
                connection.send(_tried(function, item))
            signal.setitimer(signal.ITIMER_REAL, 0)


def _tried(function: Callable[[Any], Any], argument: Any) -> tuple[Any, str]:
    """Return what the function returns, and how it failed."""
    try:
        return function(argument), ""
    except BaseException as error:
        return None, told(error)


def _end(process: "subprocess.Popen[bytes]", connection: "Connection[Any, Any]") -> None:
    process.kill()
    process.wait()
    connection.close()


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"{signal.strsignal(-code)}".lower()
