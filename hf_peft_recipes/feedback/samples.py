"""Completions that wait for feedback: drawn, and written down with lasting ids before anybody is asked."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hf_peft_recipes.errors import UserError
from hf_peft_recipes.feedback.asking import Asked, Feedback
from hf_peft_recipes.feedback.record import FeedbackRecord, Origin, Writer, as_turns
from hf_peft_recipes.feedback.verdicts import record_id
from hf_peft_recipes.results import write_text

SAMPLES_FILE = "samples.jsonl"


@dataclass(frozen=True)
class Sample(Asked):
    """One completion, with how it was drawn."""

    round: int | None = None
    model: Writer = field(default_factory=Writer)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    tokens: int = 0
    """Of the completion."""
    refines: str | None = None
    """The id of the record whose completion was refined into this one."""

    def record(self, feedback: Feedback, source: Origin) -> FeedbackRecord:
        """Return what was said of the completion as a record of now.

        Raises:
            BadRecordError: nothing was said, or nonsense.
        """
        return FeedbackRecord(
            prompt=self.prompt, completion=self.completion, source=source, score=feedback.score, label=feedback.label,
            feedback=feedback.text, correction=feedback.correction, refines=self.refines, model=self.model,
            sampling=self.sampling, round=self.round, time=datetime.now(UTC).isoformat(timespec="seconds"),
            row_id=self.row_id, id=record_id(self.id, source),
        )  # fmt: skip


def write_samples(path: Path, samples: Iterable[Sample]) -> None:
    """Write all samples of a file at once: a reader sees all of them or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(asdict(sample), ensure_ascii=False) + "\n" for sample in samples))


def read_samples(path: Path) -> list[Sample]:
    """Return the samples of a file.

    Raises:
        UserError: there is no such file, or a line is no sample.
    """
    if not path.is_file():
        raise UserError(f"{str(path)!r}: no such file")
    return [
        _sample(line, f"{path.name}:{number}")
        # Not splitlines: a line separator (U+2028) is a character of an answer.
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1)
        if line.strip()
    ]


def _sample(line: str, place: str) -> Sample:
    try:
        values = json.loads(line)
        model = Writer(**values.pop("model", {}))
        return Sample(**{**values, "prompt": as_turns(values["prompt"])}, model=model)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{place}: no sample: {error}") from None
