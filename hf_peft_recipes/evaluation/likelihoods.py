"""Metrics of how likely the answers are: loss and perplexity, margins of preference, rewards of training."""

from collections.abc import Sequence
from typing import Any

import numpy

from hf_peft_recipes.evaluation.measured import Measured, means, nothing
from hf_peft_recipes.evaluation.scores import RowScore


def likelihood(scores: Sequence[RowScore], base: Sequence[RowScore] | None) -> Measured:
    """Return loss, in nats a token, and perplexity."""
    # An answer that is not wanted is none to be good at.
    wanted = numpy.array([score.wanted is not False for score in scores])
    sums = numpy.array([score.negative_log_likelihood for score in scores]) * wanted
    tokens = numpy.array([score.tokens for score in scores]) * wanted
    if not tokens.sum():
        # Prompts alone, whose answers nobody knows.
        return nothing()

    def figures(counts: Any) -> dict[str, Any]:
        loss = counts @ sums / numpy.maximum(counts @ tokens, 1)
        # Beyond e^700 a float has no room; the loss says all there is to say.
        return {"loss": loss, "perplexity": numpy.exp(numpy.minimum(loss, 700.0))}

    return Measured(figures)


def preference(scores: Sequence[RowScore], base: Sequence[RowScore] | None) -> Measured:
    """Return how often the wanted answer is the likelier one, and by how much, in nats a token.

    Beside the base, DPO's implicit reward less its factor beta too (Rafailov et al. 2023, arXiv:2305.18290): how much
    more training has raised the log-probability of the wanted answer than that of the refused one, in nats.
    """
    margins = numpy.array([_mean(score.rejected) - _mean(score.chosen) for score in scores])
    found = {"preference_accuracy": margins > 0, "preference_margin": margins}
    if base is not None:
        pairs = zip(scores, base, strict=True)
        rewards = numpy.array([_sum_margin(score) - _sum_margin(before) for score, before in pairs])
        found |= {"reward_accuracy": rewards > 0, "reward_margin": rewards}
    return means(found)


def scored(scores: Sequence[RowScore], base: Sequence[RowScore] | None) -> Measured:
    """Return how often a reward model gives the wanted answer the higher score, and by how much."""
    margins = numpy.array([score.values[0] - score.values[1] for score in scores if score.values is not None])
    return means({"score_accuracy": margins > 0, "score_margin": margins})


def rewarded(scores: Sequence[RowScore], base: Sequence[RowScore] | None) -> Measured:
    """Return what reward functions say of the answers; nothing where there are none."""
    names = scores[0].rewards if scores else ()
    return means({name: [score.rewards[name] for score in scores] for name in names})


def judged(scores: Sequence[RowScore], base: Sequence[RowScore] | None) -> Measured:
    """Return how well training tells wanted answers from the others; nothing without a base, or one of the two."""
    wanted = numpy.array([score.wanted is True for score in scores])
    if base is None or wanted.all() or not wanted.any():
        return nothing()
    pairs = zip(scores, base, strict=True)
    # By how many nats each answer became likelier than the base has it.
    gains = numpy.array([before.negative_log_likelihood - score.negative_log_likelihood for score, before in pairs])
    return Measured(lambda counts: judged_metrics(gains, wanted, counts))


def judged_metrics(gains: Any, wanted: Any, counts: Any) -> dict[str, Any]:
    """Return, for n choices of rows, how well gains tell wanted answers from the others: AUC and difference of means.

    Args:
        gains: of shape (rows,), by how many nats each answer became likelier.
        wanted: booleans of shape (rows,).
        counts: of shape (n, rows), how often each row is chosen.
    """
    good, bad = counts[:, wanted], counts[:, ~wanted]
    above = (gains[wanted, None] > gains[None, ~wanted]) + 0.5 * (gains[wanted, None] == gains[None, ~wanted])
    numbers = numpy.maximum(good.sum(1), 1), numpy.maximum(bad.sum(1), 1)
    return {
        "reward_auc": ((good @ above) * bad).sum(1) / (numbers[0] * numbers[1]),
        "reward_margin": good @ gains[wanted] / numbers[0] - bad @ gains[~wanted] / numbers[1],
    }


def _mean(side: tuple[float, int] | None) -> float:
    assert side is not None, "a row without a refused answer is no pair"
    return side[0] / max(side[1], 1)


def _sum_margin(score: RowScore) -> float:
    """Return by how much the wanted answer is likelier than the refused one, in nats."""
    assert score.rejected is not None, "a row without a refused answer is no pair"
    return score.rejected[0] - score.negative_log_likelihood
