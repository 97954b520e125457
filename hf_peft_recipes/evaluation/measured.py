"""What a family of metrics makes of rows: figures for any choice of them, so that a bootstrap is one product."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy

from hf_peft_recipes.evaluation.scores import RowScore

Figures = Callable[[Any], dict[str, Any]]
"""From counts of shape (n, rows), how often each row is chosen, to metrics, each of shape (n,)."""


@dataclass(frozen=True)
class Measured:
    """The metrics of some rows, as functions of how often each row counts."""

    figures: Figures
    classes: Mapping[str, Figures] = field(default_factory=dict)
    """Label or kind of entity to its own figures."""
    support: Mapping[str, int] = field(default_factory=dict)
    """And to the number of its cases."""
    confusion: dict[str, Any] | None = None
    signatures: Mapping[str, str] = field(default_factory=dict)


Family = Callable[[Sequence[RowScore], Sequence[RowScore] | None], Measured]
"""From the rows under a model, and the same rows under its base or None, to metrics that are made of the same thing."""


def nothing() -> Measured:
    """Return what rows come to that a family has nothing to say of."""
    return Measured(lambda counts: {})


def means(by_row: Mapping[str, Sequence[float]]) -> Measured:
    """Return metrics that are the mean of a value of every row, by name."""
    values = {name: numpy.asarray(each, dtype=float) for name, each in by_row.items()}
    return Measured(lambda counts: {name: counts @ each / counts.sum(1) for name, each in values.items()})


def ratios(right: Any, answered: Any, actual: Any) -> dict[str, Any]:
    """Return precision, recall and F1 of counts of any one shape.

    A ratio without cases counts as 0, as scikit-learn's `zero_division=0` has it.

    Args:
        right: answers that are right.
        answered: answers that were given.
        actual: answers that should have been given.
    """
    return {
        "precision": right / numpy.maximum(answered, 1),
        "recall": right / numpy.maximum(actual, 1),
        "f1": 2 * right / numpy.maximum(answered + actual, 1),
    }
