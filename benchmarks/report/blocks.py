"""The marked blocks of the README: `<!-- measured: NAME -->` … `<!-- /measured -->`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from hf_peft_recipes.errors import UserError, did_you_mean

_BEGIN = re.compile(r"<!-- measured: *(\S*) *-->")
_END = "<!-- /measured -->"
_BLOCK = re.compile(rf"{_BEGIN.pattern}.*?{re.escape(_END)}", re.S)


def fill(text: str, blocks: Mapping[str, str], where: str) -> str:
    """Return the text with what its blocks are to say now.

    Args:
        text: of the README.
        blocks: name to Markdown; empty where nothing was measured.
        where: the file, for messages.

    Raises:
        UserError: a block of an unknown name, or one without an end.
    """
    for name in _BEGIN.findall(text):
        if name not in blocks:
            told = f"{where}: no result file for the block {name!r}{did_you_mean(name, blocks)}"
            raise UserError(f"{told} (known: {', '.join(blocks)})")
    if not len(_BEGIN.findall(text)) == text.count(_END) == len(_BLOCK.findall(text)):
        raise UserError(f"{where}: a block that begins with <!-- measured: … --> has no {_END}, or the other way round")

    def filled(found: re.Match[str]) -> str:
        body = blocks[found[1]]
        return "\n".join([f"<!-- measured: {found[1]} -->", *([body] if body else []), _END])

    return _BLOCK.sub(filled, text)


def outside(text: str) -> str:
    """Return the text without its blocks: what is written by hand."""
    return _BLOCK.sub("", text)
