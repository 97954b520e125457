"""The embedded model and data; `make.py` beside this file produces both."""

import json
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hf_peft_recipes.embedded.reviews import ADJECTIVES, DOMAINS, question

MODEL_DIR = Path(__file__).parent / "model"
REWRITER_DIR = Path(__file__).parent / "rewriter"
"""An encoder and a decoder; `make_rewriter.py` makes it."""
EMBEDDED = {None: MODEL_DIR, "embedded:rewriter": REWRITER_DIR}
"""What a recipe may call the models that ship, to their folders."""
DATA_DIR = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Demo:
    """The embedded reviews as rows of another kind than questions with answers."""

    splits: Mapping[str, list[dict[str, Any]]]


def demo(shape: str) -> Demo | None:
    """Return the embedded data for training rows of a shape; None where the files hold them as they are.

    Args:
        shape: one of `data.shapes.SHAPES`.
    """
    if shape not in _MADE:
        return None
    files = sorted(DATA_DIR.glob("*.jsonl"))
    read = {file.stem: [json.loads(line) for line in file.read_text("utf-8").splitlines()] for file in files}
    return Demo({split: _MADE[shape](rows) for split, rows in read.items()})


def _other(label: str) -> str:
    return "negative" if label == "positive" else "positive"


def _pairs(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    return [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": _other(row["completion"])} for row in rows
    ]


def _judged(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    # Not in turns: of rows that are taken evenly spaced, all would be of one kind.
    judged = [(row, zlib.crc32(row["prompt"].encode()) % 2 == 0) for row in rows]
    return [
        {**row, "completion": row["completion"] if wanted else _other(row["completion"]), "label": wanted}
        for row, wanted in judged
    ]


def _plain(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    return [{"text": f"{row['prompt']}\n{row['completion']}"} for row in rows]


def _tagged(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Say of each review which words praise, which blame, and of what the reviews speak."""
    before, after = question("|").split("|")
    reviews = [row["prompt"].removeprefix(before).removesuffix(after) for row in rows]
    return [dict(zip(("tokens", "tags"), _tags(review), strict=True)) for review in reviews]


def _tags(review: str) -> tuple[list[str], list[str]]:
    spans = [(match.span(), kind) for kind, pattern in _patterns().items() for match in pattern.finditer(review)]
    words = list(re.finditer(r"\w+|[^\w\s]", review))
    tags = ["O"] * len(words)
    for (start, end), kind in spans:
        inside = [number for number, word in enumerate(words) if start <= word.start() and word.end() <= end]
        for place, number in enumerate(inside):
            tags[number] = f"{'I' if place else 'B'}-{kind}"
    return [word[0] for word in words], tags


def _any_of(words: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted({re.escape(word) for word in words}, key=lambda word: (-len(word), word))
    return re.compile(rf"\b(?:{'|'.join(longest_first)})\b")


@cache
def _patterns() -> dict[str, re.Pattern[str]]:
    return {
        "BLAME": _any_of(word for bad, _ in ADJECTIVES.values() for word in bad),
        "PRAISE": _any_of(word for _, good in ADJECTIVES.values() for word in good),
        "SUBJECT": _any_of(noun for domain in DOMAINS for nouns in domain.nouns.values() for noun in nouns),
    }


_MADE = {"pairs": _pairs, "judged": _judged, "plain": _plain, "tagged": _tagged}
