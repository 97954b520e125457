"""An OpenAI-compatible server on this machine, which answers as a test tells it to."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """What comes back: by default one choice with a text."""

    text: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None
    """In place of the choices."""
    seconds: float = 0.0
    """Before it comes."""
    blanks: bool = False
    """Whether blanks keep the connection, meanwhile."""
    closes: bool = False
    """Whether the connection ends without an answer."""


Answering = Callable[[dict[str, Any]], Reply]


class LoopbackJudge(ThreadingHTTPServer):
    """The server; `asked` holds every question, `headers` what came with it."""

    daemon_threads = True

    def __init__(self, answering: Answering) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answering = answering
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []

    @property
    def url(self) -> str:
        """What `base_url` is."""
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(question)
        self.server.headers.append(dict(self.headers))
        self.server.times.append(time.monotonic())
        reply = self.server.answering(question) if self.path == "/v1/chat/completions" else Reply(status=404)
        with suppress(BrokenPipeError, ConnectionResetError):
            self._answer(question, reply)

    def _answer(self, question: dict[str, Any], reply: Reply) -> None:
        if reply.closes:
            return
        choice = {"message": {"role": "assistant", "content": reply.text}}
        usage = {"prompt_tokens": 10, "completion_tokens": 5}
        answer = {"choices": [choice] * question.get("n", 1), "usage": usage}
        body = (json.dumps(answer) if reply.body is None else reply.body).encode()
        if not reply.blanks:
            time.sleep(reply.seconds)
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        ends = time.monotonic() + reply.seconds
        while reply.blanks and time.monotonic() < ends:
            self.wfile.write(b" ")
            time.sleep(0.05)
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def serving(answering: Answering | list[Reply]) -> Iterator[LoopbackJudge]:
    """Serve as long as the block runs.

    Args:
        answering: from a question to the reply; or the replies in turn, the last one from then on.
    """
    if isinstance(answering, list):
        turns, lock = list(answering), threading.Lock()

        def answering(_: dict[str, Any]) -> Reply:
            with lock:
                return turns.pop(0) if len(turns) > 1 else turns[0]

    server = LoopbackJudge(answering)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
