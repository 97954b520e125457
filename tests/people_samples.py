"""What the tests of people in the loop judge, and the terminal that they sit at."""

import contextlib
import os
import pty
import re
import select
import signal
import sys
import time

from conftest import write_jsonl

from hf_peft_recipes.feedback.journal import Journal
from hf_peft_recipes.feedback.record import as_turns
from hf_peft_recipes.feedback.samples import Sample, write_samples

HOSTILE = (
    "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'> \x1b]0;pwned\x07\x1b[2J \u202eevil\u2028"
)


def answers(folder, count=4, **first):
    """Return a file of completions; `first` goes into its first row."""
    rows = [{"prompt": f"What is {n} + {n}?", "completion": f"{2 * n}", "reference": f"{2 * n}"} for n in range(count)]
    rows[0] |= first
    return write_jsonl(folder / "answers.jsonl", rows)


def begin_round(run, number, count=3):
    """Let a round of a run wait; return the ids of its samples."""
    samples = [
        Sample(
            id=f"r{number}-{n}",
            row_id=f"row{n}",
            prompt=as_turns(f"prompt {n}"),
            completion=f"answer {n}\u2028",
            round=number,
        )
        for n in range(count)
    ]
    write_samples(run / f"round-{number}" / "samples.jsonl", samples)
    return [sample.id for sample in samples]


def said(path):
    """Return what stands in a file of records: completion, who, label, critique, correction."""
    return [
        (record.completion, record.source.name.removeprefix("human:"), record.label, record.feedback, record.correction)
        for record in Journal(path).read()
    ]


class Terminal:
    """`feedback collect` at a real terminal."""

    def __init__(self, *words, **environment):
        self.screen, self._read = "", 0
        self.pid, self.descriptor = pty.fork()
        if not self.pid:
            command = [sys.executable, "-m", "hf_peft_recipes", "feedback", "collect", *map(str, words)]
            os.execve(sys.executable, command, {**os.environ, "NO_COLOR": "1", **environment})

    def type(self, keys):
        """Type."""
        os.write(self.descriptor, keys.encode())

    def wait_for(self, pattern, seconds=30):
        """Return what the screen shows up to a pattern, from where the last one ended."""
        until = time.monotonic() + seconds
        while not (found := re.compile(pattern, re.S).search(self.screen, self._read)):
            if not select.select([self.descriptor], [], [], max(0, until - time.monotonic()))[0] or not self._take():
                raise AssertionError(f"{pattern!r} does not come; on the screen: {self.screen[self._read :]}")
        before, self._read = self.screen[self._read : found.end()], found.end()
        return before

    def end(self):
        """Return the exit code, and everything that the screen showed; minus the signal, where one ended it."""
        while self._take():
            pass
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.descriptor)
        return code, self.screen

    def kill(self):
        """End it at once."""
        os.kill(self.pid, signal.SIGKILL)
        return self.end()

    def _take(self):
        with contextlib.suppress(OSError):
            taken = os.read(self.descriptor, 65536)
            self.screen += taken.decode().replace("\r\n", "\n")
            return bool(taken)
        return False
