"""Secrets kept out of what is written or printed: tokens by their shape, and what the environment calls a secret."""

import os
import re

MASK = "REDACTED"
HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
_SECRET_VARIABLE = re.compile(r"(^|_)(TOKEN|(API|ACCESS|SECRET|PRIVATE)_?KEY|SECRET|PASSWORD|PASSWD|PAT)$|PASSWORD$")
_SHORTEST_SECRET = 12
"""Shorter values of such variables are words that occur by chance."""


def redact(text: str) -> str:
    """Return the text without tokens of the Hub and without the values of the environment's secrets."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and _SECRET_VARIABLE.search(name):
            text = text.replace(value, MASK)
    return HUB_TOKEN.sub(MASK, text)
