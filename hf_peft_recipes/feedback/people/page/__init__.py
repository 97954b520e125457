"""The web page: one document that asks nothing of anybody but its own server."""

import base64
import hashlib
from html import escape
from pathlib import Path

_FOLDER = Path(__file__).parent


def page(token: str, target: str, person: str) -> tuple[str, str]:
    """Return the page, and the Content-Security-Policy that goes with it.

    Args:
        token: that the page shows its server with each request.
        target: what the browser keeps drafts under.
        person: the name that is offered to whoever begins.
    """
    style, script = (_read(name) for name in ("page.css", "page.js"))
    document = _read("index.html")
    for name, value in (("token", token), ("target", target), ("person", person)):
        document = document.replace(f"{{{name}}}", escape(value))
    # The second lock beside textContent: no script and no style but these, and no request to anywhere else.
    policy = (
        f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return document.replace("{style}", style).replace("{script}", script), policy


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
