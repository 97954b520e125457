"""What one held-out row comes to under one model, and what all of them do."""

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
    values: tuple[float, float] | None = None
    """Of a pair, the scores that a reward model gives the wanted answer and the refused one."""
    tags: tuple[str, ...] | None = None
    """Of a row of tokens, the tag that the model gives each: O, B-kind, I-kind …"""
    reference_tags: tuple[str, ...] | None = None
    """And the right ones, as many."""

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
