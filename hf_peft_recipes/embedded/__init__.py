"""The embedded model and data; `make.py` beside this file produces both."""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODEL_DIR = Path(__file__).parent / "model"
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


_MADE = {"pairs": _pairs, "judged": _judged, "plain": _plain}
