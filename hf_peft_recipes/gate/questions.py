"""Short questions whose answers are found in what a model writes: what it could do before must still be right after."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hf_peft_recipes.errors import UserError, did_you_mean
from hf_peft_recipes.scorers import SCORERS

BUNDLED = Path(__file__).parent.parent / "regression" / "questions.jsonl"
"""Written for this project: sums, plain facts, yes or no, forms to keep to; reviews, which the embedded model knows."""


@dataclass(frozen=True)
class Question:
    """One question."""

    prompt: str
    completion: str
    """The right answer."""
    scorer: str = "label"
    """How the answer is found and compared, one of `EXTRACTIONS`."""
    subject: str = "all"
    choices: tuple[str, ...] = ()
    """The answers that may be given, the right one among them; where there are none, any text may stand around it."""
    alternatives: tuple[str, ...] = ()
    """Further right answers."""

    @property
    def right(self) -> tuple[str, ...]:
        """All right answers."""
        return (self.completion, *self.alternatives)


def read_questions(path: str | None) -> list[Question]:
    """Return the questions of a JSONL file, those that ship where it is None.

    Raises:
        UserError: there is no such file, or a line that is no question.
    """
    file = BUNDLED if path is None else Path(path)
    if not file.is_file():
        near = [each.name for each in file.parent.glob("*.jsonl")] if file.parent.is_dir() else []
        raise UserError(f"regression.dataset {str(file)!r}: no such file{did_you_mean(file.name, near)}")
    lines = file.read_text(encoding="utf-8").splitlines()
    return [_question(line, f"{file.name}:{number}") for number, line in enumerate(lines, 1) if line.strip()]


def is_right(question: Question, answer: str) -> float:
    """Return 1.0 when the answer that a model's text holds is a right one, else 0.0."""
    found, score = EXTRACTIONS[question.scorer](question, answer), SCORERS[question.scorer]
    return max(score(found, right) for right in question.right)


def _question(line: str, place: str) -> Question:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{place}: broken JSON: {error}") from None
    known = [each.name for each in fields(Question)]
    if not isinstance(row, Mapping):
        raise UserError(f"{place}: a question is a mapping of {', '.join(known)}")
    for key, value in row.items():
        if key not in known:
            raise UserError(f"{place}: unknown key {key!r}{did_you_mean(key, known)}")
        several = key in ("choices", "alternatives")
        if not (_are_texts(value) if several else isinstance(value, str) and value.strip()):
            raise UserError(f"{place}: {key} is {value!r}; {'a list of texts' if several else 'a text'} is wanted")
    for key in ("prompt", "completion"):
        if key not in row:
            raise UserError(f"{place}: {key} is missing")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
    question = Question(**values)
    if question.scorer not in EXTRACTIONS:
        raise UserError(f"{place}: unknown scorer {question.scorer!r}{did_you_mean(question.scorer, EXTRACTIONS)}")
    if question.choices and not set(question.right) <= set(question.choices):
        raise UserError(f"{place}: the right answers {question.right} are not all among the choices")
    return question


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) and each.strip() for each in value)


def _whole(question: Question, answer: str) -> str:
    return answer


def _named(question: Question, answer: str) -> str:
    """Return the choice that an answer names first, as whole words; without choices the right answer, if it does."""
    return _first(question.choices or question.right, answer)


def _first(candidates: Sequence[str], answer: str) -> str:
    places = {
        candidate: match.start()
        for candidate in candidates
        if (match := re.search(rf"(?<!\w){re.escape(candidate.casefold())}(?!\w)", answer.casefold()))
    }
    # Of two at one place the longer one: "New York City", not "New York".
    return min(places, key=lambda candidate: (places[candidate], -len(candidate)), default="")


def _first_line(question: Question, answer: str) -> str:
    """Return the first line that is not empty, without quotation marks around it."""
    line = next((line.strip() for line in answer.splitlines() if line.strip()), "")
    quoted = len(line) > 2 and line[0] in "\"'`" and line[-1] == line[0]
    return line[1:-1] if quoted else line


EXTRACTIONS: dict[str, Callable[[Question, str], str]] = {
    "numeric": _whole,  # the scorer itself finds the number
    "label": _named,
    "exact": _first_line,
}
"""Scorer to what finds the answer that it compares."""
