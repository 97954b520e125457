"""Answers that were given once, on disk: whoever asks the same again gets the same, and pays nothing."""

import hashlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_peft_recipes.redaction import redact
from hf_peft_recipes.results import open_confided


def question_key(*told: Any) -> str:
    """Return what a question is known by: 64 hexadecimal digits of all that decides about its answer."""
    return hashlib.sha256(json.dumps(told, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class Answers:
    """A file of JSON lines, `{key, texts}`; without a path they are kept as long as this process lives."""

    def __init__(self, path: Path | None) -> None:
        """Args:
        path: of the file, which need not be there yet.
        """
        self._path, self._lock = path, threading.Lock()
        self._known = dict[str, list[str]]() if path is None or not path.exists() else _read(path)

    def get(self, key: str) -> list[str] | None:
        """Return the answers to a question, None where it was not asked."""
        return self._known.get(key)

    def put(self, key: str, texts: Sequence[str]) -> None:
        """Keep the answers to a question; they are on disk when this returns."""
        with self._lock:
            self._known[key] = list(texts)
            if self._path is None:
                return
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "ab", opener=open_confided) as file:
                # A line that a kill left half is ended first; it is skipped when the file is read.
                start = b"\n" if file.tell() and not _ends_whole(self._path) else b""
                line = redact(json.dumps({"key": key, "texts": list(texts)}, ensure_ascii=False))
                file.write(start + line.encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())


def _read(path: Path) -> dict[str, list[str]]:
    found = {}
    for line in path.read_bytes().splitlines():
        try:
            entry: Mapping[str, Any] = json.loads(line)
            found[str(entry["key"])] = [str(text) for text in entry["texts"]]
        except (ValueError, KeyError, TypeError):
            # Half a line, or somebody else's: the question is asked again, and nothing is lost.
            continue
    return found


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
