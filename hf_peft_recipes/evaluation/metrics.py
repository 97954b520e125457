"""From the scores of rows to metrics, each with its bootstrap interval: what every task is measured by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from hf_peft_recipes.evaluation.bootstrap import intervals, resampled
from hf_peft_recipes.evaluation.classification import classification
from hf_peft_recipes.evaluation.entities import entities, words_tagged
from hf_peft_recipes.evaluation.likelihoods import judged, likelihood, preference, rewarded, scored
from hf_peft_recipes.evaluation.matching import exact_match, numeric_match
from hf_peft_recipes.evaluation.measured import Family
from hf_peft_recipes.evaluation.scores import Metrics, RowScore
from hf_peft_recipes.evaluation.texts import bleu, chrf, rouge


@dataclass(frozen=True)
class Task:
    """How rows of one kind are measured."""

    families: tuple[Family, ...] = ()
    """Beside the likelihood, which all tasks have."""
    generates: bool = False
    """Whether the model has to write answers."""


TASKS = {
    "text": Task(),
    "classification": Task((classification,), generates=True),
    "exact_match": Task((exact_match,), generates=True),
    "numeric": Task((numeric_match,), generates=True),
    "entities": Task((entities, words_tagged), generates=True),
    "tags": Task((words_tagged,)),
    "generation": Task((rouge, bleu, chrf), generates=True),
    "preference": Task((preference,)),
    "judged": Task((judged,)),
    "scored": Task((scored,)),
}
"""What `evaluation.task` may name, `auto` aside."""

_Key = tuple[str | None, str]
"""Label, None for what is of all rows; and metric."""


def summarize(
    scores: Sequence[RowScore],
    task: str,
    section: Mapping[str, Any],
    seed: int,
    base: Sequence[RowScore] | None = None,
) -> Metrics:
    """Return the metrics over the rows, with percentile bootstrap intervals (Efron 1979) over resampled rows.

    The same number of rows and the same seed draw the same rows: so draws of two models on the same rows are pairs.

    Args:
        scores: one a row.
        task: one of `TASKS`.
        section: the recipe's `evaluation` section: `bootstrap_samples`, `confidence`.
        seed: of the resampling.
        base: the same rows under the model that training began with; None where they are that.
    """
    measured = [family(scores, base) for family in (likelihood, *TASKS[task].families, rewarded)]

    def figures(counts: Any) -> dict[_Key, Any]:
        found: dict[_Key, Any] = {}
        for each in measured:
            found |= {(None, name): value for name, value in each.figures(counts).items()}
            for label, of_class in each.classes.items():
                found |= {(label, name): value for name, value in of_class(counts).items()}
        return found

    values = {key: float(value[0]) for key, value in figures(numpy.ones((1, len(scores)))).items()}
    draws = resampled(figures, len(scores), int(section["bootstrap_samples"]), seed)
    confidence = float(section["confidence"])
    examples = [{"answer": score.answer, "reference": score.reference} for score in scores[:5]]
    answered = any(score.answer is not None for score in scores)
    overall = _of(None, draws)
    return Metrics(
        _of(None, values),
        intervals(overall, confidence),
        examples if answered else [],
        list(scores),
        overall,
        {
            label: {**_of(label, values), "support": number, "intervals": intervals(_of(label, draws), confidence)}
            for each in measured
            for label, number in each.support.items()
        },
        next((each.confusion for each in measured if each.confusion), None),
        {name: text for each in measured for name, text in each.signatures.items()},
    )


def _of(label: str | None, figures: Mapping[_Key, Any]) -> dict[str, Any]:
    return {name: value for (of, name), value in figures.items() if of == label}
