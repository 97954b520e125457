"""Metrics of labels: accuracy, precision, recall and F1, over all labels and of each."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy

from hf_peft_recipes.evaluation.measured import Measured, ratios
from hf_peft_recipes.evaluation.scores import RowScore
from hf_peft_recipes.scorers.label import normalized


def classification(scores: Sequence[RowScore], base: Sequence[RowScore] | None) -> Measured:
    """Return accuracy and macro precision, recall and F1, and those of each label; labels are those of references.

    The figures are scikit-learn's. Macro averages are over the labels of references, each weighing the same.
    """
    references = numpy.array([normalized(str(score.reference)) for score in scores])
    answers = numpy.array([normalized(str(score.answer)) for score in scores])
    labels = sorted(set(references.tolist()))
    names = numpy.array(labels)
    actual = (references[:, None] == names).astype(float)
    answered = (answers[:, None] == names).astype(float)
    right = actual * answered

    def figures(counts: Any) -> dict[str, Any]:
        found = ratios(counts @ right, counts @ answered, counts @ actual)
        return {
            "accuracy": (counts @ right).sum(1) / counts.sum(1),
            "macro_f1": found["f1"].mean(1),
            "macro_precision": found["precision"].mean(1),
            "macro_recall": found["recall"].mean(1),
        }

    def of_label(at: int, counts: Any) -> dict[str, Any]:
        return ratios(counts @ right[:, at], counts @ answered[:, at], counts @ actual[:, at])

    return Measured(
        figures,
        classes={label: partial(of_label, at) for at, label in enumerate(labels)},
        support={label: int(number) for label, number in zip(labels, actual.sum(0), strict=True)},
        confusion={"labels": labels, "counts": _confusion(references, answers, labels)},
    )


def _confusion(references: Any, answers: Any, labels: list[str]) -> list[list[int]]:
    """Return counts by reference and answer; the last column is for what is no label."""
    known = {label: at for at, label in enumerate(labels)}
    # References are labels all of them.
    table = [[0] * (len(labels) + 1) for _ in labels]
    for reference, answer in zip(references.tolist(), answers.tolist(), strict=True):
        table[known[reference]][known.get(answer, len(labels))] += 1
    return table
