"""What the tests of people in the loop judge, and the terminal that they sit at."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from http.client import HTTPConnection
from urllib.parse import urlsplit

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


def begin_round(run, number, count=3, answer="answer"):
    """Let a round of a run wait; return the ids of its samples."""
    samples = [
        Sample(
            id=f"r{number}-{n}",
            row_id=f"row{n}",
            prompt=as_turns(f"prompt {n}"),
            completion=f"{answer} {n}\u2028",
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


class Page:
    """`feedback serve` as a process, and requests to it as its page makes them."""

    def __init__(self, *words, port=0, **options):
        command = [sys.executable, "-m", "hf_peft_recipes", "feedback", "serve", *map(str, words), "--port", str(port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
        self.address = self.process.stdout.readline().strip()
        if self.address:
            self.port, self.token = (
                int(urlsplit(self.address).port),
                urlsplit(self.address).query.removeprefix("token="),
            )

    def ask(self, path, values=None, **headers):
        """Return status, headers and body of the answer; what has no values is a GET without the token."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        body = values if values is None or isinstance(values, (bytes, str)) else json.dumps(values)
        own = {} if values is None else {"X-Feedback-Token": self.token}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        sent = {name: value for name, value in {**own, **named}.items() if value is not None}
        connection.request("GET" if values is None else "POST", path, body, sent)
        answer = connection.getresponse()
        told = answer.read().decode()
        connection.close()
        is_json = answer.headers.get_content_type() == "application/json"
        return answer.status, answer.headers, json.loads(told) if is_json else told

    def do(self, path, **values):
        """Return what the server tells the page, which must have asked right."""
        status, _, told = self.ask(path, values)
        assert status == 200, told
        return told

    def kill(self):
        """End it at once."""
        self.process.kill()
        self.process.communicate()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()
