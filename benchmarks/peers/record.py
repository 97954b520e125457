"""The benchmark's file: every finished run of a contender, written as soon as it is done."""

import json
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.peers.environments import ROOT
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.results import write_text

SCHEMA_VERSION = 2
"""1 was that of `against_trl.json`, whose two sides did not read the same tokens."""


class Record:
    """Cells by name, `check/ours` or `turn 1/trl_best`, under the settings and the commit that they were run at."""

    def __init__(self, path: Path, settings: dict[str, Any], overwrite: bool = False) -> None:
        """Read the file, where it holds cells of these settings and this commit.

        Raises:
            UserError: it is of another schema, other settings or another commit, and is not to be overwritten.
        """
        self.path = path
        self.content: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION, "settings": settings, "commit": commit(), "cells": {},
        }  # fmt: skip
        if path.is_file() and not overwrite:
            self.content = self._read(settings)

    def _read(self, settings: dict[str, Any]) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
            version = found.get("schema_version")
        except (ValueError, AttributeError) as error:
            raise UserError(f"{self.path}: broken JSON: {error} (--overwrite begins anew)") from None
        if version != SCHEMA_VERSION:
            told = f"schema version {version!r}; this benchmark goes on with {SCHEMA_VERSION}"
            raise UserError(f"{self.path}: {told} (--overwrite begins anew)")
        # Through JSON, as what was read has been.
        differing = [key for key in settings if found["settings"].get(key) != json.loads(json.dumps(settings[key]))]
        if differing or found["commit"] != self.content["commit"]:
            what = f"other {', '.join(differing)}" if differing else f"commit {found['commit'][:12]}"
            raise UserError(f"{self.path}: holds runs of {what} (--out names another file, --overwrite begins anew)")
        return found

    def cell(self, name: str) -> dict[str, Any] | None:
        """Return a cell that is done; None for one that is still to be run."""
        found: dict[str, Any] | None = self.content["cells"].get(name)
        return found if found and found.get("status") == "done" else None

    def keep(self, name: str, cell: dict[str, Any]) -> None:
        """Keep a cell, on disk too."""
        self.content["cells"][name] = cell
        self.write()

    def write(self) -> None:
        """Write the file, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, json.dumps(self.content, indent=2) + "\n")


def commit() -> str:
    """Return the checkout's commit, marked where code has changed since."""
    head = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--", "hf_peft_recipes", "recipes", "benchmarks/peers")
    return f"{head}{' and changes' if changed else ''}"


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
