"""HTTP: reading requests, writing answers, and the faults between them."""

import json
import re
import socket
import struct
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from loopback_hub.faults import Fault, Faults
from loopback_hub.refusals import Refusal

STORAGE_HOST = "localhost"
"""The other origin: large objects come and go there, as on the Hub's storage, and no token may."""


@dataclass(frozen=True)
class Request:
    """A request as it was received."""

    method: str
    path: str
    """As sent, with the query."""
    headers: dict[str, str]
    """Their names in lower case."""
    body: bytes
    host: str = ""
    """`127.0.0.1` for the Hub, `localhost` for its storage."""

    @property
    def query(self) -> dict[str, list[str]]:
        """The query's values by name."""
        return parse_qs(urlsplit(self.path).query, keep_blank_values=True)

    def asked(self, name: str) -> str | None:
        """Return the value of a name of the query, None without one."""
        return self.query.get(name, [None])[0]

    def flagged(self, name: str) -> bool:
        """Whether a name of the query is set to what means yes."""
        return (self.asked(name) or "").lower() in ("1", "true")

    def json(self) -> Any:
        """Return what the body holds; refuse a body that is no JSON."""
        try:
            return json.loads(self.body or b"{}")
        except ValueError:
            raise Refusal(400, "The body is no JSON") from None


@dataclass
class Answer:
    """What a request is answered with."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of_json(cls, value: Any, status: int = 200, **headers: str) -> "Answer":
        """Return an answer with a value as JSON."""
        headers = {name.replace("_", "-"): text for name, text in headers.items()}
        return cls(status, json.dumps(value).encode(), {"Content-Type": "application/json; charset=utf-8", **headers})


class _CutOff(Exception):
    """The connection is to be closed here, by a reset or with the end that a process's death leaves."""

    def __init__(self, reset: bool) -> None:
        super().__init__()
        self.reset = reset


class Server(ThreadingHTTPServer):
    """A server of its own port on 127.0.0.1.

    Args:
        respond: what makes an answer of a request; `Refusal` is an answer too.
    """

    daemon_threads = True
    # Clients open many connections at once; a full queue would let one of them wait a second.
    request_queue_size = 64

    def __init__(self, respond: Callable[[Request], Answer], faults: Faults) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.respond, self.faults = respond, faults
        self.requests: list[Request] = []
        self.stopped = threading.Event()
        self._connections: set[socket.socket] = set()
        self._to_reset: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), name="loopback-hub", daemon=True)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self.server_address[1]

    def start(self) -> None:
        """Serve from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Stop serving and close the connections that clients keep open."""
        self.stopped.set()
        self.shutdown()
        for connection in list(self._connections):
            _shut(connection)
        self.server_close()
        self._thread.join()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def reset(self, connection: socket.socket) -> None:
        """Let a connection end in a reset, not in an orderly end, when its handler is done."""
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._to_reset.add(connection)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        if request in self._to_reset:
            self._to_reset.discard(request)
            self.close_request(request)
        else:
            super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hang up; anything else is a fault of this server and belongs on stderr."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _handle(self) -> None:
        fault = self.server.faults.strike(self.command, self.path)
        try:
            request = self._received(fault)
            answer = self._answer(request, fault)
            self._send(answer, fault)
        except _CutOff as cut:
            self.close_connection = True
            if cut.reset:
                self.server.reset(self.connection)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = _handle

    def _received(self, fault: Fault | None) -> Request:
        cut = fault is not None and fault.how == "reset"
        body, has_body = self._body(cut)
        headers = {name.lower(): value for name, value in self.headers.items()}
        host = headers.get("host", "").rsplit(":", 1)[0]
        request = Request(self.command, self.path, headers, body, host)
        self.server.requests.append(request)
        if cut and has_body:
            raise _CutOff(reset=True)
        return request

    def _body(self, cut: bool) -> tuple[bytes, bool]:
        """Return the request's body, half of it where it is to be cut, and whether it has one."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                if cut:
                    return self.rfile.read(size // 2), True
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts), True
        size = int(self.headers.get("Content-Length") or 0)
        return self.rfile.read(size // 2 if cut else size), size > 0

    def _answer(self, request: Request, fault: Fault | None) -> Answer:
        how = fault.how if fault else ""
        if fault and how in ("500", "429", "403"):
            headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
            words = {"500": "Internal Error", "429": "Too Many Requests", "403": "Forbidden"}
            return _refused(Refusal(int(how), words[how], headers=headers))
        if fault and how == "slow":
            self.server.stopped.wait(fault.seconds)
        try:
            answer = self.server.respond(request)
        except Refusal as refusal:
            answer = _refused(refusal)
        if how == "lost_answer":
            raise _CutOff(reset=False)
        if how == "flip" and answer.body:
            answer.body = flipped(answer.body)
        return answer

    def _send(self, answer: Answer, fault: Fault | None) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if "Content-Length" not in answer.headers:
            self.send_header("Content-Length", str(len(answer.body)))
        if self.server.stopped.is_set():
            self.send_header("Connection", "close")
        self.end_headers()
        body = b"" if self.command == "HEAD" else answer.body
        if fault and fault.how == "reset":
            # An orderly end in the middle is what a proxy that gives up looks like.
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            _shut(self.connection)
        else:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet; `requests` has it all."""


def flipped(content: bytes) -> bytes:
    """Return the content with one byte in its middle changed."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def ranged(content: bytes, wanted: str | None) -> Answer:
    """Return an answer with the content, or with the part of it that a `Range` header wants."""
    headers = {"Accept-Ranges": "bytes"}
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted or "")
    if not found or not (found[1] or found[2]):
        return Answer(200, content, headers)
    if found[1]:
        start, end = int(found[1]), min(int(found[2] or len(content)), len(content) - 1)
    else:
        start, end = max(len(content) - int(found[2]), 0), len(content) - 1
    if start > end:
        raise Refusal(416, "Range Not Satisfiable", headers={"Content-Range": f"bytes */{len(content)}"})
    return Answer(206, content[start : end + 1], {**headers, "Content-Range": f"bytes {start}-{end}/{len(content)}"})


def _refused(refusal: Refusal) -> Answer:
    headers = {"Content-Type": "application/json; charset=utf-8", **refusal.headers}
    return Answer(refusal.status, json.dumps(refusal.body).encode(), headers)


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return
