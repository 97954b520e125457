"""What one held-out row comes to under one model, and what all of them do."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class RowScore:
    """One held-out row under one model."""

    negative_log_likelihood: float
    """Summed over the row's supervised tokens, in nats; of a pair, those of the wanted answer."""
    tokens: int
    answer: str | None = None
    reference: str | None = None
    rejected: tuple[float, int] | None = None
    """The same two figures of the refused answer of a pair."""
    wanted: bool | None = None
    """Of a judged answer, whether it is wanted."""
    values: tuple[float, float] | None = None
    """Of a pair, the scores that a reward model gives the wanted answer and the refused one."""
    alternatives: tuple[str, ...] = ()
    """Further answers that are as right as the reference."""
    tags: tuple[str, ...] | None = None
    """Of a row of tokens, the tag that the model gives each: O, B-kind, I-kind …"""
    reference_tags: tuple[str, ...] | None = None
    """And the right ones, as many."""

    rewards: Mapping[str, float] = field(default_factory=dict)
    """What the answer is worth, by reward function, and their weighted sum as `reward`."""

    @property
    def chosen(self) -> tuple[float, int]:
        """The loss and the tokens of the wanted answer."""
        return self.negative_log_likelihood, self.tokens

    @property
    def references(self) -> tuple[str, ...]:
        """The reference and its alternatives."""
        return (str(self.reference), *self.alternatives)


@dataclass(frozen=True)
class Metrics:
    """Metric names to values, and to the interval in which the value lies."""

    values: dict[str, float]
    intervals: dict[str, list[float]]
    examples: list[dict[str, str | None]]
    """A few answers beside their references."""
    scores: list[RowScore] = field(default_factory=list, repr=False)
    """Of the rows, for a comparison with another model's."""
    draws: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Metric names to the values of every bootstrap sample, of shape (samples,)."""
    classes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Label or kind of entity to its `precision`, `recall`, `f1`, their `intervals`, and `support`, its cases."""
    confusion: dict[str, Any] | None = None
    """`labels`, and `counts`: by reference and answer, one column more than labels for what is none."""
    signatures: dict[str, str] = field(default_factory=dict)
    """Metric names to how exactly they were made, as their library says it."""
