"""From a policy and a run to a verdict: base against trained model on the same rows, by intervals of differences."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy

from hf_peft_recipes import trained
from hf_peft_recipes.errors import UserError, did_you_mean
from hf_peft_recipes.evaluation import intervals, resampled
from hf_peft_recipes.gate.policy import Policy, Regression
from hf_peft_recipes.gate.questions import Question, is_right, read_questions
from hf_peft_recipes.gate.verdicts import KEEP, SHIP
from hf_peft_recipes.metric_facts import LOWER_IS_BETTER
from hf_peft_recipes.spec import ResolvedRecipe
from hf_peft_recipes.spec.objectives import objective_facts
from hf_peft_recipes.trained import TrainedModel


def decide(folder: Path, recipe: ResolvedRecipe, record: Mapping[str, Any], policy: Policy) -> dict[str, Any]:
    """Return `{verdict, conditions, metrics, …}`: whether the run in `folder` may ship, and the figures that say so.

    The task's metric must be better than the base's by more than the policy's margin, and the share of right answers to
    the regression set not lower by more than its own. Both are judged by the worse end of a paired bootstrap interval:
    what the rows cannot show does not count.

    Args:
        folder: the run's.
        recipe: of its `recipe.yaml`.
        record: its `result.json`.
        policy: what is asked for.

    Raises:
        UserError: too few rows, a metric that the task does not have, or data that cannot be read any more.
    """
    questions = read_questions(policy.regression.dataset) if policy.regression else []
    known = record["metrics"]["before"]
    _require_metric(policy, known if known else {policy.metric: 0.0})
    _require_rows(policy, "held-out rows", len(trained.read_held_out(recipe).held_out), "evaluation.max_rows")
    if policy.regression and not objective_facts(recipe.objective).writes:
        raise UserError(
            f"the policy's regression set asks questions, and a model of {recipe.objective} writes nothing; "
            "leave it out"
        )
    if policy.regression:
        _require_rows(policy, "questions", len(questions), "regression.dataset")
    loaded = trained.load(folder, recipe, record)
    metrics = trained.evaluate(loaded, record, confidence=policy.confidence)
    _require_metric(policy, metrics["difference"])
    conditions = [_task(policy, metrics)]
    if policy.regression:
        conditions.append(_regression(loaded, policy, policy.regression, questions))
    return {
        "verdict": SHIP if all(condition["ok"] for condition in conditions) else KEEP,
        "confidence": policy.confidence,
        "conditions": conditions,
        "metrics": metrics,
    }


def _require_metric(policy: Policy, known: Mapping[str, Any]) -> None:
    if policy.metric not in known:
        raise UserError(
            f"the policy's metric {policy.metric!r} is none that base and run are both measured by"
            f"{did_you_mean(policy.metric, known)} ({', '.join(known)})"
        )


def _require_rows(policy: Policy, what: str, rows: int, where: str) -> None:
    if rows < policy.min_rows:
        raise UserError(
            f"{rows} {what} are too few to decide by: the policy's min_rows is {policy.min_rows} (see {where})"
        )


def _task(policy: Policy, metrics: Mapping[str, Any]) -> dict[str, Any]:
    name = policy.metric
    falls = name in LOWER_IS_BETTER
    change, interval = metrics["difference"][name], metrics["intervals"]["difference"][name]
    gain, sure = (-change, -interval[1]) if falls else (change, interval[0])
    ok = sure > policy.rises_by
    verb = "fell" if falls else "rose"
    return {
        "name": "task",
        "metric": name,
        "rows": metrics["rows"],
        "base": metrics["before"][name],
        "trained": metrics["after"][name],
        "difference": change,
        "interval": interval,
        "wanted": f"{'falls' if falls else 'rises'} by more than {policy.rises_by:g}",
        "ok": ok,
        "why": f"{name} {verb} by {gain:.4g}, by the worse end of its interval {sure:.4g}, where more than "
        f"{policy.rises_by:g} is asked for",
    }


def _regression(
    loaded: TrainedModel, policy: Policy, regression: Regression, questions: Sequence[Question]
) -> dict[str, Any]:
    section = loaded.recipe.section("evaluation") or {}
    seed, batch = loaded.recipe.value("training.seed") or 0, int(section["batch_size"])

    def answers(model: Any) -> list[str]:
        prompts = [question.prompt for question in questions]
        return trained.answers(loaded, model, prompts, regression.max_new_tokens, batch)

    told = {"base": trained.on_base(loaded, answers), "trained": answers(loaded.model)}
    right = {
        side: numpy.array([is_right(*pair) for pair in zip(questions, each, strict=True)])
        for side, each in told.items()
    }
    changes = right["trained"] - right["base"]
    drawn = resampled(
        lambda counts: {"share": counts @ changes / len(questions)},
        len(questions),
        int(section["bootstrap_samples"]),
        seed,
    )
    interval = intervals(drawn, policy.confidence)["share"]
    knows = bool(right["base"].any())
    why = (
        f"right answers changed by {changes.mean():+.4g}, by the worse end of the interval {interval[0]:+.4g}, where a "
        f"fall of {regression.falls_at_most:g} at most is allowed"
        if knows
        else "the base answers no question of the regression set, so no fall could show; name another dataset"
    )
    subjects = list(dict.fromkeys(question.subject for question in questions))
    of = {subject: [at for at, each in enumerate(questions) if each.subject == subject] for subject in subjects}
    lost = [at for at, change in enumerate(changes) if change < 0]
    return {
        "name": "regression",
        "metric": "right answers",
        "rows": len(questions),
        "base": float(right["base"].mean()),
        "trained": float(right["trained"].mean()),
        "difference": float(changes.mean()),
        "interval": interval,
        "wanted": f"falls by at most {regression.falls_at_most:g}",
        "ok": knows and interval[0] >= -regression.falls_at_most,
        "why": why,
        "gained": int((changes > 0).sum()),
        "lost": len(lost),
        "subjects": {
            subject: {
                "rows": len(rows),
                "base": int(right["base"][rows].sum()),
                "trained": int(right["trained"][rows].sum()),
            }
            for subject, rows in of.items()
        },
        "lost_answers": [
            {
                "prompt": questions[at].prompt,
                "completion": questions[at].completion,
                **{side: each[at] for side, each in told.items()},
            }
            for at in lost[:5]
        ],
    }
