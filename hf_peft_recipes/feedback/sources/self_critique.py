"""The model judges its own answers (Madaan et al. 2023, arXiv:2303.17651)."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from hf_peft_recipes.errors import UserError
from hf_peft_recipes.feedback.asking import Asked, Feedback, Policy, SourceError
from hf_peft_recipes.feedback.record import Turns
from hf_peft_recipes.feedback.sources.apart import Apart
from hf_peft_recipes.feedback.sources.templates import fill, read_template

TEMPLATE = """\
{prompt}

An answer to this was:
{completion}

Is the answer right? Begin with "Right" or "Wrong", and say what is wrong with it."""
VERDICT = r"(?i)^\W*(?:(?:it|the answer|this) is )?(?:right|correct)\b"
_PLACES = ("prompt", "completion")
_AT_A_TIME = 64
"""Answers whose critiques are drawn together, so that a run that is cut off keeps those it has."""
_SECONDS = 10.0
"""For a pattern on one critique."""


class SelfCritique:
    """The model that wrote the answers, asked for a critique, greedily.

    Small models agree with themselves: compare what it accepts with a checker's verdict before it is trusted.
    """

    name = "self"
    needs_reference = False

    def __init__(self, *, template: str = TEMPLATE, verdict: str = VERDICT, max_new_tokens: int = 128) -> None:
        """Args:
            template: a text, or a file, with `{completion}`, and maybe `{prompt}`: the last turn, in whose place it is.
            verdict: a regular expression, found in a critique that says that the answer is right.
            max_new_tokens: of a critique.

        Raises:
            UserError: no template, or a broken pattern.
        """
        try:
            re.compile(verdict)
        except re.error as error:
            raise UserError(f"verdict {verdict!r}: {error}") from None
        self._template, self._tokens = read_template(template, _PLACES), max_new_tokens
        self._matching = Apart(matching, verdict, _SECONDS)
        self.version = hashlib.sha256(f"{self._template}\0{verdict}\0{max_new_tokens}".encode()).hexdigest()[:8]

    def judge(self, asked: Sequence[Asked], policy: Policy | None) -> Iterator[tuple[Asked, Feedback | SourceError]]:
        """Yield the critique of each completion, and whether it says that the answer is right.

        Raises:
            UserError: the model is not at hand.
        """
        if policy is None:
            raise UserError("the source 'self' asks the model that wrote the answers, and there is none at hand")
        sampling = {"temperature": 0.0, "max_new_tokens": self._tokens}
        for start in range(0, len(asked), _AT_A_TIME):
            some = asked[start : start + _AT_A_TIME]
            told, refused = self._critiques(some, policy, sampling)
            yield from refused
            critiques = [critique for _, critique in told]
            for (one, critique), found in zip(told, self._matching.ask(critiques), strict=True):
                yield one, self._feedback(critique, found)

    def _critiques(
        self, asked: Sequence[Asked], policy: Policy, sampling: Mapping[str, Any]
    ) -> tuple[list[tuple[Asked, str]], list[tuple[Asked, SourceError]]]:
        """Return the critiques, and why there is none where the model cannot be asked: a question that is too long."""
        questions = [self._question(one) for one in asked]
        try:
            answers = policy.answer(questions, 1, sampling, 0)
            return [(one, texts[0].strip()) for one, texts in zip(asked, answers, strict=True)], []
        except UserError as error:
            if len(asked) == 1:
                return [], [(asked[0], SourceError(f"{self.name}: {error}"))]
        # Which of them it was, each by itself tells.
        parts = [self._critiques([one], policy, sampling) for one in asked]
        return [pair for told, _ in parts for pair in told], [pair for _, refused in parts for pair in refused]

    def _question(self, one: Asked) -> Turns:
        contents = {"prompt": one.prompt[-1]["content"], "completion": one.completion}
        return (*one.prompt[:-1], {"role": "user", "content": fill(self._template, contents)})

    def _feedback(self, critique: str, found: bool | SourceError) -> Feedback | SourceError:
        if isinstance(found, SourceError):
            return SourceError(f"{self.name}: verdict: {found}")
        return Feedback(label=found, text=critique) if critique else SourceError(f"{self.name}: an empty critique")


def matching(pattern: str) -> Callable[[str], bool]:
    """Return what finds the pattern in a text."""
    compiled = re.compile(pattern)
    return lambda text: compiled.search(text) is not None
