"""How feedback is asked for: what a source is given, and what it says."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from hf_peft_recipes.errors import SourceError
from hf_peft_recipes.feedback.record import Turns

__all__ = ["Asked", "Feedback", "Options", "Policy", "Source", "SourceError"]


@dataclass(frozen=True)
class Asked:
    """One completion that feedback is wanted on."""

    id: str
    """Of the sample, the same whenever it is asked for."""
    row_id: str
    prompt: Turns
    completion: str
    reference: str | None = None
    """The right answer, where the data have one; people and judges need not see it."""


@dataclass(frozen=True)
class Feedback:
    """What a source says of a completion; at least one of score, label and correction."""

    score: float | None = None
    """From 0, wrong, to 1, right."""
    label: bool | None = None
    """Whether it is accepted."""
    text: str | None = None
    """In words."""
    correction: str | None = None
    """The answer in its place."""


class Policy(Protocol):
    """A model that answers conversations: the one that is trained, or a server."""

    def answer(
        self, conversations: Sequence[Turns], samples: int, sampling: Mapping[str, Any], seed: int
    ) -> list[list[str]]:
        """Return so many answers to every conversation, without white space around them.

        Args:
            conversations: turns up to the answer.
            samples: answers to each.
            sampling: `temperature` (0 is greedy), `top_p`, `top_k`, `max_new_tokens`.
            seed: of the draws.
        """


class Source(Protocol):
    """Who or what gives feedback."""

    name: str
    version: str
    needs_reference: bool
    """Whether it can say nothing of a completion whose row has no reference."""

    def judge(self, asked: Sequence[Asked], policy: Policy | None) -> Iterator[tuple[Asked, Feedback | SourceError]]:
        """Yield what is said of each completion, as it comes and in any order, so that what is known is kept.

        Args:
            asked: completions.
            policy: the model that wrote them, for a source that asks it too; None where there is none at hand.
        """


Options = Mapping[str, Any]
"""What can be chosen of a source: `feedback.options`."""
