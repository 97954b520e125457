"""The files of a run in rounds. What is there already is not done again, so a run goes on where it was cut off."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_peft_recipes.feedback.journal import JOURNAL_FILE
from hf_peft_recipes.feedback.samples import SAMPLES_FILE
from hf_peft_recipes.results import write_text

ACCOUNT_FILE = "round.json"


@dataclass(frozen=True)
class RoundFolder:
    """The files of one round; round 0 is the model that the first one begins with."""

    run: Path
    """Of all rounds."""
    number: int

    @property
    def path(self) -> Path:
        """The round's folder."""
        return self.run / f"round-{self.number}"

    @property
    def samples(self) -> Path:
        """The answers that were drawn."""
        return self.path / SAMPLES_FILE

    def refinements(self, step: int) -> Path:
        """The new tries at answers that were wrong."""
        return self.path / f"refinements-{step}.jsonl"

    @property
    def own_rows(self) -> Path:
        """What the round's own answers teach."""
        return self.path / "selected.jsonl"

    @property
    def rows(self) -> Path:
        """What is learned from: these, and what is replayed of earlier rounds."""
        return self.path / "train.jsonl"

    @property
    def training(self) -> Path:
        """The run that learned from them."""
        return self.path / "run"

    @property
    def scores(self) -> Path:
        """What the model comes to on each held-out row."""
        return self.path / "scores.json"

    @property
    def account(self) -> Path:
        """What the round brought; the last file that is written."""
        return self.path / ACCOUNT_FILE


def journal_path(run: Path) -> Path:
    """Return the file of all feedback of a run."""
    return run / JOURNAL_FILE


def read_json(path: Path) -> Any:
    """Return what a file holds, None where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def write_json(path: Path, value: Any) -> None:
    """Write a file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
