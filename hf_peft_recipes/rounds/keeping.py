"""Whether a round's model is kept: by the held-out rows, and by what it could do before."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hf_peft_recipes.errors import UserError
from hf_peft_recipes.metric_facts import LOWER_IS_BETTER, TASK_METRICS
from hf_peft_recipes.rounds.settings import Rounds


@dataclass(frozen=True)
class Verdict:
    """Whether a round is kept, and why."""

    kept: bool
    why: str


def metric_of(settings: Rounds, values: Mapping[str, float]) -> str:
    """Return the metric by which rounds are kept: the recipe's, else the task's own, else the loss.

    Raises:
        UserError: the rows are not measured by it.
    """
    if settings.metric is not None:
        if settings.metric not in values:
            raise UserError(f"feedback.metric {settings.metric}: these rows are measured by {', '.join(values)}")
        return settings.metric
    return next((name for name in TASK_METRICS if name in values), "loss")


def decide(
    account: Mapping[str, Any], best: Mapping[str, Any], start: Mapping[str, Any], settings: Rounds, metric: str
) -> Verdict:
    """Return whether a round is kept.

    Args:
        account: of the round: `metrics`, `regression`.
        best: of the best round that was kept, or of the start.
        start: of the model before the first round, by which the regression set is judged.
        settings: of the recipe: by how much what may fall.
        metric: by which rounds are compared.
    """
    now, before = account["metrics"][metric], best["metrics"][metric]
    fell = now - before if metric in LOWER_IS_BETTER else before - now
    if fell > settings.falls_at_most:
        verb = "rose" if metric in LOWER_IS_BETTER else "fell"
        return Verdict(False, f"{metric} {verb} from {before:.4g} to {now:.4g}")
    if account.get("regression") and start.get("regression"):
        could, can = start["regression"]["right"], account["regression"]["right"]
        if could - can > settings.regression_falls_at_most:
            return Verdict(
                False,
                f"right answers to the regression set fell from {could:.1%} to {can:.1%}, by more than "
                f"feedback.regression_falls_at_most {settings.regression_falls_at_most:.1%}",
            )
    return Verdict(True, f"{metric} {before:.4g} to {now:.4g}")
