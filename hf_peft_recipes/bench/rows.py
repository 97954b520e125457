"""Rows of text whose lengths in tokens are known exactly, for models with the embedded model's tokenizer."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from hf_peft_recipes.embedded import MODEL_DIR
from hf_peft_recipes.errors import UserError, did_you_mean

_SHORTEST = 8
_MEDIAN, _SPREAD = 4.5, 0.9
"""Of the logarithm of a skewed length: a median of 90 tokens, one in a hundred rows beyond 700."""

LENGTHS: dict[str, Callable[[random.Random, int], int]] = {
    "full": lambda draw, most: most,
    "ragged": lambda draw, most: draw.randint(_SHORTEST, most),
    "skewed": lambda draw, most: min(most, max(_SHORTEST, int(draw.lognormvariate(_MEDIAN, _SPREAD)))),
}
"""How long rows are: to the last token, all lengths alike, or as answers of people are."""


def find_lengths(name: str) -> Callable[[random.Random, int], int]:
    """Return what draws a length, given the longest one.

    Raises:
        UserError: an unknown distribution of lengths.
    """
    if name not in LENGTHS:
        raise UserError(f"unknown lengths {name!r}{did_you_mean(name, LENGTHS)} (known: {', '.join(LENGTHS)})")
    return LENGTHS[name]


def write_rows(path: Path, number: int, most: int, lengths: str = "full", seed: int = 0) -> None:
    """Write plain text, a JSON line a row, each of so many tokens with its end token.

    Args:
        path: of the file.
        number: of rows.
        most: tokens of the longest row.
        lengths: one of LENGTHS.
        seed: of what is drawn; rows of different seeds differ.

    Raises:
        UserError: an unknown distribution of lengths.
    """
    draw_length, draw = find_lengths(lengths), random.Random(seed)
    write_documents(path, (max(draw_length(draw, most), 2) for _ in range(number)), draw)


def write_documents(path: Path, lengths: Iterable[int], draw: random.Random | None = None) -> None:
    """Write plain text, a JSON line a row, of these tokens each with its end token.

    Args:
        path: of the file.
        lengths: tokens of each row, two at least.
        draw: decides on the words.
    """
    draw, words = draw or random.Random(0), _words()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for length in lengths:
            # A letter begins the row, the end token ends it; words between are a token each.
            file.write(json.dumps({"text": " ".join(["x", *draw.choices(words, k=length - 2)])}) + "\n")


def _words() -> Sequence[str]:
    """Return the words that the embedded tokenizer knows with the blank before them as one token."""
    vocabulary = json.loads((MODEL_DIR / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    return sorted(token[1:] for token in vocabulary if token.startswith("Ġ") and token[1:].isalpha() and len(token) > 3)
