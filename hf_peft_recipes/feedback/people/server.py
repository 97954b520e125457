"""`feedback serve`: the web page and its requests, for who holds the token."""

import errno
import hashlib
import hmac
import ipaddress
import json
import socket
import socketserver
import sys
from collections.abc import Mapping
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from hf_peft_recipes.errors import RecipeError, UserError
from hf_peft_recipes.feedback.people.judging import JudgementError
from hf_peft_recipes.feedback.people.page import page
from hf_peft_recipes.feedback.people.queue import Queue
from hf_peft_recipes.feedback.people.service import Service
from hf_peft_recipes.feedback.people.tokens import kept_token

TOKEN_HEADER = "X-Feedback-Token"
_LARGEST_BYTES = 4 * 2**20
"""Of a request; a correction is a few thousand characters."""


class FeedbackServer(ThreadingHTTPServer):
    """Serves one queue to browsers; what is judged is on disk before its request is answered."""

    daemon_threads = True

    def __init__(self, service: Service, token: str, host: str, port: int, target: str, person: str = "") -> None:
        """Args:
        service: what is asked.
        token: that a browser must bring.
        host: the address that is listened on, or its name.
        port: 0 takes a free one.
        target: what the browsers keep drafts under.
        person: the name that is offered to whoever begins.

        Raises:
            UserError: the address cannot be listened on.
        """
        self.service, self.token, self._host = service, token, host
        self.page, self.policy = page(token, target, person)
        if not 0 <= port <= 65535:
            raise UserError(f"port {port}: from 0 to 65535 is wanted; 0 takes a free one")
        try:
            self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise UserError(f"{host}, port {port}: {_refusal(error)}") from None

    def server_bind(self) -> None:
        """Take the address; http.server would also ask the name service for its name, which may take long."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self._host, self.server_address[1]

    def address(self) -> str:
        """Return what is to be opened in a browser, the token with it."""
        host = socket.gethostname() if self._host in ("0.0.0.0", "::") else self._host
        named = f"[{host}]" if ":" in host else host
        return f"http://{named}:{self.server_port}/?token={self.token}"

    def is_own_name(self, host: str) -> bool:
        """Return whether a request's Host is one of this machine, and no name that was bent to its address.

        A page of another site comes with that site's name, wherever it let the name lead to, and never with an address.
        """
        name = ""
        try:
            name = urlsplit(f"//{host}").hostname or ""
            ipaddress.ip_address(name)
        except ValueError:
            return name in {"localhost", self._host.lower(), socket.gethostname().lower()}
        return True

    def is_loopback(self) -> bool:
        """Return whether this machine alone can reach it."""
        return ipaddress.ip_address(str(self.server_address[0])).is_loopback

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Leave out what is no error: a browser that went away."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


def open_server(queue: Queue, host: str, port: int, person: str = "", show_reference: bool = False) -> FeedbackServer:
    """Return a server that listens; `serve_forever` lets it answer.

    Args:
        queue: what waits.
        host: the address that is listened on, or its name.
        port: 0 takes a free one.
        person: the name that is offered to whoever begins.
        show_reference: also show the right answer, where there is one.

    Raises:
        UserError: the address cannot be listened on.
    """
    target = hashlib.sha256(str(queue.target.journal.resolve()).encode()).hexdigest()[:16]
    return FeedbackServer(Service(queue, show_reference), kept_token(target), host, port, target, person)


class _Handler(BaseHTTPRequestHandler):
    server: FeedbackServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "hf-peft-recipes", ""
    timeout = 60
    """Seconds for a client that says nothing."""

    def do_GET(self) -> None:
        """Answer with the page."""
        path, _, query = self.path.partition("?")
        given = parse_qs(query).get("token", [""])[0]
        if not self.server.is_own_name(self.headers.get("Host", "")) or not self._holds_token(given, self._cookie()):
            self._refuse(HTTPStatus.FORBIDDEN, "open the address that the server printed, its token with it")
        elif path != "/":
            self._refuse(HTTPStatus.NOT_FOUND, "there is one page, /")
        else:
            cookie = f"{self._cookie_name()}={self.server.token}; HttpOnly; SameSite=Lax; Path=/"
            self._answer(
                HTTPStatus.OK, self.server.page, "text/html",
                {"Set-Cookie": cookie, "Content-Security-Policy": self.server.policy},
            )  # fmt: skip

    def do_POST(self) -> None:
        """Answer a request of the page's script."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > _LARGEST_BYTES:
            self.close_connection = True
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "more than a judgement takes")
            return
        # Read in any case: the next request follows on the same connection.
        body = self.rfile.read(int(length))
        handle = self.server.service.paths.get(self.path)
        if not self._is_of_the_page():
            self._refuse(HTTPStatus.FORBIDDEN, "open the address that the server printed, its token with it")
        elif handle is None:
            self._refuse(HTTPStatus.NOT_FOUND, "no such path")
        else:
            try:
                status, told = HTTPStatus.OK, handle(_mapping(body))
            except JudgementError as error:
                status, told = HTTPStatus.BAD_REQUEST, {"error": str(error)}
            except (RecipeError, OSError) as error:
                # A full disk, a journal that cannot be read: the page keeps what it has, and asks again.
                status, told = HTTPStatus.INTERNAL_SERVER_ERROR, {"error": str(error)}
            self._answer(status, json.dumps(told), "application/json")

    def _is_of_the_page(self) -> bool:
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        at_home = origin is None or origin.partition("://")[2] == host
        return at_home and self.server.is_own_name(host) and self._holds_token(self.headers.get(TOKEN_HEADER, ""))

    def _holds_token(self, *given: str) -> bool:
        own = self.server.token.encode()
        return any(hmac.compare_digest(each.encode(), own) for each in given)

    def _cookie(self) -> str:
        try:
            morsel = SimpleCookie(self.headers.get("Cookie", "")).get(self._cookie_name())
        except CookieError:
            return ""
        return morsel.value if morsel else ""

    def _cookie_name(self) -> str:
        # Cookies do not tell ports apart.
        return f"feedback_{self.server.server_port}"

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self._answer(status, json.dumps({"error": why}), "application/json")

    def _answer(self, status: HTTPStatus, text: str, kind: str, headers: Mapping[str, str] | None = None) -> None:
        body = text.encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing: a request's address may hold the token."""


def _mapping(body: bytes) -> Mapping[str, Any]:
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        raise JudgementError("no JSON") from None
    if not isinstance(values, dict):
        raise JudgementError("a mapping is wanted")
    return values


def _refusal(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "the port is in use; --port 0 takes a free one"
    if isinstance(error, socket.gaierror):
        return "no address of this machine has that name; --host 127.0.0.1 is the default"
    return error.strerror or str(error)
