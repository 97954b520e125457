"""Programs that check an answer against its reference, or against a form: the scorers of metrics and rewards, in words.

Each function returns a source; its arguments are what can be chosen of it. `reveal` says whether its words tell the
right answer, and `correct` whether that is the correction too. Without a correction a model learns from its own new
tries, which is what language feedback is for.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_peft_recipes.errors import UserError
from hf_peft_recipes.feedback.asking import Asked, Feedback, Policy, SourceError
from hf_peft_recipes.feedback.sources import wording
from hf_peft_recipes.feedback.sources.apart import Apart
from hf_peft_recipes.feedback.sources.threads import in_threads
from hf_peft_recipes.scorers import SCORERS
from hf_peft_recipes.scorers.format import THOUGHT_AND_ANSWER
from hf_peft_recipes.scorers.sandbox import run_code
from hf_peft_recipes.scorers.unit_tests import code_of

_SECONDS = 30.0


def exact(*, reveal: bool = True, correct: bool = False, seconds: float = _SECONDS) -> "Checker":
    """Return the source that wants the reference itself, but for white space."""
    return Checker(Check("exact", {}, reveal, correct), seconds)


def label(
    *, labels: Sequence[str] = (), reveal: bool = True, correct: bool = False, seconds: float = _SECONDS
) -> "Checker":
    """Return the source that wants the reference's label and nothing else.

    Args:
        labels: that there are, for its words.
        reveal: whether the right one is told.
        correct: whether it is the correction, too.
        seconds: for one completion.
    """
    return Checker(Check("label", {}, reveal, correct, {"labels": tuple(labels)}), seconds)


def numeric(*, reveal: bool = True, correct: bool = False, seconds: float = _SECONDS) -> "Checker":
    """Return the source that wants the number in which the reference ends."""
    return Checker(Check("numeric", {}, reveal, correct), seconds)


def regex(*, pattern: str | None = None, reveal: bool = True, seconds: float = _SECONDS) -> "Checker":
    """Return the source that wants the whole answer to match.

    Args:
        pattern: a regular expression; by default the reference is one.
        reveal: whether the pattern is told.
        seconds: for one completion, which ends patterns that go back and forth for ever.
    """
    return Checker(Check("regex", {"pattern": pattern}, reveal), seconds, needs_reference=pattern is None)


def format(*, pattern: str = THOUGHT_AND_ANSWER, reveal: bool = True, seconds: float = _SECONDS) -> "Checker":
    """Return the source that wants a form, whatever the reference; see `regex`."""
    return Checker(Check("format", {"pattern": pattern}, reveal), seconds, needs_reference=False)


def json_schema(
    *, schema: Mapping[str, Any] | None = None, reveal: bool = True, seconds: float = _SECONDS
) -> "Checker":
    """Return the source that wants JSON of a schema.

    Args:
        schema: a JSON schema; by default the reference holds one.
        reveal: whether the validator's message is told, beside the place.
        seconds: for one completion.
    """
    return Checker(Check("json_schema", {"schema": schema}, reveal), seconds, needs_reference=schema is None)


def unit_tests(
    *,
    seconds: float = 5.0,
    memory_mib: int = 512,
    processes: int | None = None,
    reveal: bool = True,
    allow_code_execution: bool = False,
) -> "UnitTests":
    """Return the source that runs the answer's code, and then the reference's tests; see `scorers.sandbox`.

    Args:
        seconds: that code and tests may take together.
        memory_mib: that they may have, in MiB.
        processes: that run at once; by default one a processor.
        reveal: whether the failing line is told, which is one of the tests.
        allow_code_execution: comes from who runs this alone.
    """
    if not allow_code_execution:
        raise UserError("unit_tests runs code that the model writes; --allow_code_execution allows it")
    return UnitTests(seconds, memory_mib, processes or os.cpu_count() or 1, reveal)


@dataclass(frozen=True)
class Check:
    """What the process that checks is told."""

    scorer: str
    options: Mapping[str, Any]
    """Of the scorer."""
    reveal: bool
    correct: bool = False
    words: Mapping[str, Any] | None = None
    """What the wording is told in place of the scorer's options."""


class Checker:
    """A scorer that says what is wrong, in a process of its own."""

    def __init__(self, check: Check, seconds: float, needs_reference: bool = True) -> None:
        """Args:
        check: what is checked.
        seconds: for one completion.
        needs_reference: whether rows without a reference cannot be checked.
        """
        if check.correct and not check.reveal:
            raise UserError(f"{check.scorer}: correct hands out the reference, which reveal: false keeps back")
        told = json.dumps([dict(check.options), check.reveal, check.correct, check.words], default=list, sort_keys=True)
        self.name, self.version = check.scorer, hashlib.sha256(told.encode()).hexdigest()[:8]
        self.needs_reference = needs_reference
        self._apart = Apart(checking, check, seconds)

    def judge(self, asked: Sequence[Asked], policy: Policy | None) -> Iterator[tuple[Asked, Feedback | SourceError]]:
        """Yield what is said of each completion; see `Source`."""
        able = [one for one in asked if one.reference is not None or not self.needs_reference]
        for one in asked:
            if one.reference is None and self.needs_reference:
                yield one, SourceError(f"{self.name}: the row has no reference")
        for one, said in zip(able, self._apart.ask(able), strict=True):
            yield one, SourceError(f"{self.name}: {said}") if isinstance(said, SourceError) else said


def checking(check: Check) -> Callable[[Asked], Feedback]:
    """Return the check as a function."""
    scorer, words = SCORERS[check.scorer], wording.WORDS[check.scorer]
    told = check.options if check.words is None else check.words

    def checked(one: Asked) -> Feedback:
        answer = one.completion.strip()
        score = scorer(answer, one.reference, **check.options)
        right = score == 1
        text = words(answer, one.reference, right, check.reveal, **told)
        return Feedback(score, right, text, one.reference if check.correct and not right else None)

    return checked


class UnitTests:
    """The sandbox, which has its own processes and limits."""

    name = "unit_tests"
    needs_reference = True

    def __init__(self, seconds: float, memory_mib: int, processes: int, reveal: bool) -> None:
        """Args: as `unit_tests` has them."""
        self.version = f"{seconds:g}s-{memory_mib}MiB"
        self._limits, self._processes, self._reveal = (seconds, memory_mib), processes, reveal

    def judge(self, asked: Sequence[Asked], policy: Policy | None) -> Iterator[tuple[Asked, Feedback | SourceError]]:
        """Yield what is said of each completion, as it comes; see `Source`."""
        yield from in_threads(self._checked, asked, self._processes)

    def _checked(self, one: Asked) -> Feedback | SourceError:
        if one.reference is None:
            return SourceError(f"{self.name}: the row has no reference")
        try:
            verdict = run_code(code_of(one.completion), code_of(one.reference), *self._limits)
        except OSError as error:
            # No process or no file can be had, which says nothing of the answer.
            return SourceError(f"{self.name}: {error}")
        text = wording.unit_tests(verdict.reason, verdict.passed, self._reveal)
        return Feedback(float(verdict.passed), verdict.passed, text)
