"""From the scores of rows to metrics, each with its bootstrap interval."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy

from hf_peft_recipes.evaluation.scores import Metrics, RowScore
from hf_peft_recipes.scorers import SCORERS
from hf_peft_recipes.scorers.label import normalized


def summarize(
    scores: Sequence[RowScore],
    task: str,
    section: Mapping[str, Any],
    seed: int,
    base: Sequence[RowScore] | None = None,
) -> Metrics:
    """Return the metrics over the rows, with percentile bootstrap intervals (Efron 1979) over resampled rows.

    Args:
        scores: one a row.
        task: as `find_task` returns it.
        section: the recipe's `evaluation` section: `bootstrap_samples`, `confidence`.
        seed: of the resampling.
        base: the same rows under the model that training began with; None where they are that.
    """
    random = numpy.random.default_rng(seed)
    samples, tail = int(section["bootstrap_samples"]), (1 - float(section["confidence"])) / 2
    chosen = random.integers(0, len(scores), size=(samples, len(scores)))
    values, resampled = _losses(scores, chosen)
    if task == "classification":
        values |= _classification_values(scores)
        table = confusion(scores)
        # Resampling rows is drawing the cells of the table with their frequencies.
        drawn = random.multinomial(len(scores), table.ravel() / table.sum(), size=samples)
        resampled |= classification_metrics(drawn.reshape(samples, *table.shape))
    wanted = numpy.array([score.wanted is True for score in scores])
    if task == "judged" and base is not None and wanted.any() and not wanted.all():
        counts = numpy.array([numpy.bincount(some, minlength=len(scores)) for some in chosen])
        gains, once = _gains(scores, base), numpy.ones((1, len(scores)))
        values |= {name: float(value[0]) for name, value in judged_metrics(gains, wanted, once).items()}
        resampled |= judged_metrics(gains, wanted, counts)
    for name, by_row in _BY_ROW.get(task, _nothing)(scores, base).items():
        values[name], resampled[name] = float(by_row.mean()), by_row[chosen].mean(1)
    for name in scores[0].rewards if scores else ():
        by_row = numpy.array([score.rewards[name] for score in scores])
        values[name], resampled[name] = float(by_row.mean()), by_row[chosen].mean(1)
    intervals = {
        name: [float(numpy.quantile(draws, tail)), float(numpy.quantile(draws, 1 - tail))]
        for name, draws in resampled.items()
    }
    examples = [{"answer": score.answer, "reference": score.reference} for score in scores[:5]]
    answered = any(score.answer is not None for score in scores)
    return Metrics(values, intervals, examples if answered else [], list(scores))


def _losses(scores: Sequence[RowScore], chosen: Any) -> tuple[dict[str, float], dict[str, Any]]:
    """Return loss and perplexity, and both for every choice of rows."""
    # An answer that is not wanted is none to be good at.
    wanted = numpy.array([score.wanted is not False for score in scores])
    sums = numpy.array([score.negative_log_likelihood for score in scores]) * wanted
    counts = numpy.array([score.tokens for score in scores]) * wanted
    if not counts.sum():
        return {}, {}
    loss = float(sums.sum() / counts.sum())
    drawn = sums[chosen].sum(1) / numpy.maximum(counts[chosen].sum(1), 1)
    # Beyond e^700 a float has no room; the loss says all there is to say.
    return (
        {"loss": loss, "perplexity": math.exp(min(loss, 700.0))},
        {"loss": drawn, "perplexity": numpy.exp(numpy.minimum(drawn, 700.0))},
    )


def _exact_match(scores: Sequence[RowScore], base: Sequence[RowScore] | None) -> dict[str, Any]:
    right = [SCORERS["exact"](str(score.answer), str(score.reference)) for score in scores]
    return {"exact_match": numpy.array(right)}


def _preference(scores: Sequence[RowScore], base: Sequence[RowScore] | None) -> dict[str, Any]:
    """Return by row whether the wanted answer is the likelier one, and by how much, in nats a token.

    Beside the base, DPO's implicit reward less its factor beta too (Rafailov et al. 2023, arXiv:2305.18290): how much
    more training has raised the log-probability of the wanted answer than that of the refused one, in nats.
    """
    margins = numpy.array([_mean(score.rejected) - _mean(score.chosen) for score in scores])
    found = {"preference_accuracy": (margins > 0).astype(float), "preference_margin": margins}
    if base is not None:
        pairs = zip(scores, base, strict=True)
        rewards = numpy.array([_sum_margin(score) - _sum_margin(before) for score, before in pairs])
        found |= {"reward_accuracy": (rewards > 0).astype(float), "reward_margin": rewards}
    return found


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


def _gains(scores: Sequence[RowScore], base: Sequence[RowScore]) -> Any:
    """Return by how many nats each answer became likelier than the base has it."""
    pairs = zip(scores, base, strict=True)
    return numpy.array([before.negative_log_likelihood - score.negative_log_likelihood for score, before in pairs])


def _nothing(scores: Sequence[RowScore], base: Sequence[RowScore] | None) -> dict[str, Any]:
    return {}


_BY_ROW = {"exact_match": _exact_match, "preference": _preference}
"""Task to what gives its metrics' values row by row; each metric is their mean."""


def _mean(side: tuple[float, int] | None) -> float:
    assert side is not None, "a row without a refused answer is no pair"
    return side[0] / max(side[1], 1)


def _sum_margin(score: RowScore) -> float:
    """Return by how much the wanted answer is likelier than the refused one, in nats."""
    assert score.rejected is not None, "a row without a refused answer is no pair"
    return score.rejected[0] - score.negative_log_likelihood


def confusion(scores: Sequence[RowScore]) -> Any:
    """Return counts of shape (labels, labels + 1): reference by answer, the last column for what is no label."""
    labels = sorted({normalized(str(score.reference)) for score in scores})
    index = {label: number for number, label in enumerate(labels)}
    table = numpy.zeros((len(labels), len(labels) + 1))
    pairs = Counter((normalized(str(score.reference)), normalized(str(score.answer))) for score in scores)
    for (reference, answer), number in pairs.items():
        table[index[reference], index.get(answer, len(labels))] += number
    return table


def classification_metrics(tables: Any) -> dict[str, Any]:
    """Return accuracy and macro precision, recall and F1, each of shape (n,), for n confusion tables.

    A ratio without cases counts as 0, as scikit-learn's `zero_division=0` has it; labels are averaged alike.

    Args:
        tables: counts of shape (n, labels, labels + 1), as `confusion` makes them.
    """
    right = numpy.diagonal(tables[:, :, :-1], axis1=1, axis2=2)
    answered, actual = tables[:, :, :-1].sum(1), tables.sum(2)
    precision = right / numpy.maximum(answered, 1)
    recall = right / numpy.maximum(actual, 1)
    f1 = 2 * right / numpy.maximum(answered + actual, 1)
    return {
        "accuracy": right.sum(1) / tables.sum((1, 2)),
        "macro_f1": f1.mean(1),
        "macro_precision": precision.mean(1),
        "macro_recall": recall.mean(1),
    }


def _classification_values(scores: Sequence[RowScore]) -> dict[str, float]:
    """Return scikit-learn's figures, which `classification_metrics` must agree with."""
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    references = [normalized(str(score.reference)) for score in scores]
    answers = [normalized(str(score.answer)) for score in scores]
    precision, recall, f1, _ = precision_recall_fscore_support(
        references, answers, labels=sorted(set(references)), average="macro", zero_division=0
    )
    return {
        "accuracy": float(accuracy_score(references, answers)),
        "macro_f1": float(f1),
        "macro_precision": float(precision),
        "macro_recall": float(recall),
    }
