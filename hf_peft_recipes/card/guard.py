"""The last look at a card before it leaves: nothing of the machine that it was made on, and no secret."""

import re
from pathlib import Path

_TOKEN = re.compile(r"(?:hf|api_org)_[A-Za-z0-9]{20,}")

_ROOTS = "Users|Volumes|content|data|home|kaggle|mnt|opt|root|scratch|srv|tmp|usr|var|work(?:space)?"

# Not behind a word, a slash or a bracket, as in addresses (https://a/b), names (user/name) and tags (</p>).
_PATHS = (
    re.compile(r"(?<![\w/.<])/[\w.@+~-]+/[\w.@+~-]"),
    re.compile(rf"(?<![\w/.<])/(?:{_ROOTS})\b"),
    re.compile(r"(?<![\w/.<])/[\w@+~-]+\.\w+"),
    re.compile(r"(?<![\w/.~])~[\w.-]*/"),
    re.compile(r"(?<![A-Za-z])[A-Za-z]:[\\/](?!/)"),
    re.compile(r"\\\\[\w.-]+\\"),
    re.compile(r"file://"),
)


def check_public(text: str) -> None:
    """Raise a ValueError where the text holds a home folder, an absolute local path or what looks like a token.

    The message gives the line, and never the token.

    Args:
        text: the whole card, metadata included.
    """
    home = str(Path.home())
    for number, line in enumerate(text.splitlines(), 1):
        if _TOKEN.search(line):
            raise ValueError(f"line {number} of the card holds what looks like an access token")
        found = next((match for pattern in _PATHS if (match := pattern.search(line))), None)
        # A home folder of `/` is in every address.
        if found or (len(home) > 1 and home in line):
            shown = line[found.start() : found.start() + 60] if found else home
            raise ValueError(f"line {number} of the card holds a local path: {_TOKEN.sub('…', shown)!r}")
