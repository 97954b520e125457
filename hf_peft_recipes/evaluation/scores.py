"""What one held-out row comes to under one model, and what all of them do."""

from collections.abc import Mapping
from dataclasses import dataclass, field


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

    rewards: Mapping[str, float] = field(default_factory=dict)
    """What the answer is worth, by reward function, and their weighted sum as `reward`."""

    @property
    def chosen(self) -> tuple[float, int]:
        """The loss and the tokens of the wanted answer."""
        return self.negative_log_likelihood, self.tokens


@dataclass(frozen=True)
class Metrics:
    """Metric names to values, and to the interval in which the value lies."""

    values: dict[str, float]
    intervals: dict[str, list[float]]
    examples: list[dict[str, str | None]]
    """A few answers beside their references."""
    scores: list[RowScore] = field(default_factory=list, repr=False)
    """Of the rows, for a comparison with another model's."""
