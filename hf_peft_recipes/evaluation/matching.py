"""Metrics of answers that are right or wrong: exact match, numeric match."""

from collections.abc import Sequence

from hf_peft_recipes.evaluation.measured import Measured, means
from hf_peft_recipes.evaluation.scores import RowScore
from hf_peft_recipes.scorers import SCORERS
from hf_peft_recipes.scorers.numeric import MARK, number


def exact_match(scores: Sequence[RowScore], base: Sequence[RowScore] | None) -> Measured:
    """Return the share of answers that are one of the references but for white space."""
    return means({"exact_match": matches(scores, "exact")})


def numeric_match(scores: Sequence[RowScore], base: Sequence[RowScore] | None) -> Measured:
    """Return the share of answers that end in the number of one of the references."""
    return means({"numeric_match": matches(scores, "numeric")})


def matches(scores: Sequence[RowScore], scorer: str) -> list[float]:
    """Return by row the best score of the answer against any of its references.

    Args:
        scores: of rows that were answered.
        scorer: one of `SCORERS`.
    """
    score_of = SCORERS[scorer]
    return [max(score_of(str(score.answer or ""), reference) for reference in score.references) for score in scores]


def ends_in_marked_number(reference: str) -> bool:
    """Return whether a reference states its result as GSM8K does, a number behind `####`."""
    _, mark, result = reference.rpartition(MARK)
    return bool(mark) and number(result) is not None
