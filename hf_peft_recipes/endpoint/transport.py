"""One request to a server: within a time, without being led elsewhere, and failures told in one line."""

import json
import random
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

from hf_peft_recipes.errors import RecipeError, UserError
from hf_peft_recipes.redaction import HUB_TOKEN, MASK, redact

LONGEST_PAUSE_SECONDS = 60.0
"""Between attempts; a server that asks for more is not waited for."""
_MOST_BYTES = 16 << 20
_SHOWN_CHARACTERS = 200
_REFUSED = (401, 403, 404)
"""Statuses that hold for every further question: the key, the permission, the model or the address is wrong."""
_OF_HUB = ("huggingface.co", "hf.co", "huggingface.cloud")
"""Domains of the Hub, its router and its endpoints, which take its tokens as keys."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class EndpointError(RecipeError):
    """A server was not reached, refused, or answered something else than asked for; the message is one line."""

    exit_code = 3


@dataclass(frozen=True)
class Address:
    """Where a question goes."""

    url: str
    key: str = ""
    """Goes along as a bearer token; it is in no message."""
    seconds: float = 60.0
    """From the question to its answer, for one attempt."""
    attempts: int = 5
    pause_seconds: float = 1.0
    """Before the second attempt; each further pause is twice as long, and drawn from its second half (jitter)."""

    def __post_init__(self) -> None:
        """Refuse what is no address, and a key that no header can hold."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"base_url {self.url!r}: an address that begins with http:// or https:// is wanted")
        if parts.username or parts.password:
            raise UserError("base_url holds a name or a password, which would be written down: use api_key_env")
        if HUB_TOKEN.search(self.key) and not _is_hub(parts.hostname):
            raise UserError(
                f"the key is a token of the Hub, which goes to no other server than the Hub's, not {self.url}"
            )
        if not self.key.isascii() or not self.key.isprintable():
            raise UserError("the key holds characters that no header can hold")


def _is_hub(host: str) -> bool:
    return any(host == domain or host.endswith(f".{domain}") for domain in _OF_HUB)


def ask(address: Address, question: bytes, before: Callable[[], None]) -> tuple[Mapping[str, Any], bytes]:
    """Return what the server answers, as JSON and as it came.

    After 429, a status from 500 on, a broken answer or none, it is asked again, as late as it says (`Retry-After`) and
    never sooner than the pause; any other status stands.

    Args:
        address: of the server.
        question: JSON.
        before: called before every attempt.

    Raises:
        UserError: the key, the model or the address is wrong.
        EndpointError: it was not answered in the end.
    """
    pause = address.pause_seconds
    for attempt in range(1, address.attempts + 1):
        before()
        after, failure = 0.0, ""
        try:
            status, headers, body = _post(address, question)
        except (OSError, HTTPException) as error:
            failure = _reason(error, address)
        else:
            if status == 200 and (answer := _mapping(body)) is not None:
                return answer, body
            if status != 200:
                failure, after = f"{status}: {_said(body)}", _retry_after(headers)
                _require_passing(address, status, headers, failure)
            else:
                failure = f"no JSON object: {_said(body)}"
        if attempt == address.attempts or after > LONGEST_PAUSE_SECONDS:
            waits = f", and asks to wait {after:.0f} s" if after > LONGEST_PAUSE_SECONDS else ""
            raise EndpointError(_masked(f"{address.url}: {failure}{waits} ({attempt} attempts)", address))
        time.sleep(max(after, pause * random.uniform(0.5, 1.0)))
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
    raise AssertionError("unreachable")


class _Stay(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key along, to whatever server it names."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _post(address: Address, question: bytes) -> tuple[int, Mapping[str, str], bytes]:
    headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "hf-peft-recipes"}
    if address.key:
        headers["Authorization"] = f"Bearer {address.key}"
    request = urllib.request.Request(address.url, question, headers, method="POST")
    # A proxy knows another machine by these names.
    own = [urllib.request.ProxyHandler({})] if urlsplit(address.url).hostname in _LOOPBACK else []
    deadline = time.monotonic() + address.seconds
    try:
        response = urllib.request.build_opener(_Stay, *own).open(request, timeout=address.seconds)
    except HTTPError as error:
        response = error
    with response:
        body = b""
        while piece := response.read1(1 << 16):
            body += piece
            # Some servers send blanks to keep a connection, so that no single read ever takes too long.
            if time.monotonic() > deadline:
                raise TimeoutError
            if len(body) > _MOST_BYTES:
                raise OSError("an answer without end")
        return int(response.status), dict(response.headers.items()), body


def _require_passing(address: Address, status: int, headers: Mapping[str, str], failure: str) -> None:
    """Raise where the same question would be answered in the same way."""
    if status in _REFUSED:
        raise UserError(_masked(f"{address.url}: {failure}", address))
    if 300 <= status < 400:
        raise UserError(f"{address.url}: redirected to {_named(headers, 'location')!r}; give that as base_url")
    if status != 429 and status < 500:
        raise EndpointError(_masked(f"{address.url}: {failure}", address))


def _retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds of `Retry-After`, which is a number or a date (RFC 9110, 10.2.3); 0 without it."""
    told = _named(headers, "retry-after").strip()
    try:
        return max(0.0, float(told))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(told).timestamp() - time.time())
    except ValueError:
        return 0.0


def _named(headers: Mapping[str, str], name: str) -> str:
    return next((value for key, value in headers.items() if key.lower() == name), "")


def _mapping(body: bytes) -> Mapping[str, Any] | None:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, Mapping) else None


def _said(body: bytes) -> str:
    """Return what a server says of a failure, as one line."""
    told: Any = _mapping(body) or {}
    error = told.get("error")
    told = error.get("message") if isinstance(error, Mapping) else error or told.get("message") or told.get("detail")
    text = told if isinstance(told, str) else body.decode("utf-8", "replace")
    line = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    return f"{line[:_SHOWN_CHARACTERS]}…" if len(line) > _SHOWN_CHARACTERS else line or "nothing"


def _reason(error: Exception, address: Address) -> str:
    reason = getattr(error, "reason", error)
    if isinstance(error, TimeoutError) or isinstance(reason, TimeoutError):
        return f"no answer within {address.seconds:g} s"
    return " ".join(str(reason).split()) or type(error).__name__


def _masked(text: str, address: Address) -> str:
    return redact(text.replace(address.key, MASK) if address.key else text)
