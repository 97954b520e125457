"""The bootstrap: figures of rows that are drawn again and again, and the intervals in which these lie (Efron 1979)."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy

_Key = TypeVar("_Key")
_DRAWN_AT_ONCE = 2**22
"""Rows of all samples that are drawn at a time: 32 MiB of counts."""


def resampled(figures: Callable[[Any], dict[_Key, Any]], rows: int, samples: int, seed: int) -> dict[_Key, Any]:
    """Return the figures of every bootstrap sample, each of shape (samples,).

    The same numbers and the same seed draw the same rows: so samples of two models on the same rows are pairs.

    Args:
        figures: from counts of shape (n, rows), how often each row is drawn, to figures of shape (n,).
        rows: to draw from, and how many are drawn.
        samples: how often they are drawn.
        seed: of the draws.
    """
    random, at_once = numpy.random.default_rng(seed), max(1, _DRAWN_AT_ONCE // rows)
    found = []
    for start in range(0, samples, at_once):
        chosen = random.integers(0, rows, size=(min(at_once, samples - start), rows))
        found.append(figures(numpy.array([numpy.bincount(some, minlength=rows) for some in chosen], dtype=float)))
    return {key: numpy.concatenate([each[key] for each in found]) for key in found[0]}


def intervals(draws: Mapping[str, Any], confidence: float) -> dict[str, list[float]]:
    """Return, for every metric, the interval that holds so large a share of its bootstrap samples' values.

    Args:
        draws: metric names to values of shape (samples,).
        confidence: a share of 1.
    """
    tail = (1 - confidence) / 2
    return {
        name: [float(numpy.quantile(each, tail)), float(numpy.quantile(each, 1 - tail))] for name, each in draws.items()
    }
