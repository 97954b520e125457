"""What a model is worth, round by round: held-out rows, what it could do before, and how far it is from its base."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hf_peft_recipes.errors import NotTrainedError
from hf_peft_recipes.evaluation import Metrics, RowScore, score_rows, summarize
from hf_peft_recipes.feedback.record import as_turns
from hf_peft_recipes.gate.questions import is_right, read_questions
from hf_peft_recipes.rounds.course import Course
from hf_peft_recipes.rounds.drawing import turns_of
from hf_peft_recipes.rounds.folder import RoundFolder, read_json, write_json
from hf_peft_recipes.rounds.speaker import Speaker
from hf_peft_recipes.spec.objectives import objective_facts
from hf_peft_recipes.trained import on_base

_BUNDLED = "bundled"
_ANSWER_TOKENS = 64
"""Of an answer to the regression set: those of the bundled one are short."""
_DRIFT_ROWS = 64
"""Held-out rows on whose answers the drift is measured: its spread over rows is small."""


@dataclass(frozen=True)
class Measured:
    """A model's worth."""

    metrics: Metrics
    regression: dict[str, Any] | None
    drift: float | None
    """KL divergence from the base on the model's own held-out answers, in nats a token; None of the base itself."""

    def shown(self) -> dict[str, Any]:
        """Return it as the account of a round has it."""
        return {
            "metrics": self.metrics.values,
            "intervals": self.metrics.intervals,
            "regression": self.regression,
            "drift_nats_per_token": self.drift,
        }


def measure(
    course: Course, folder: RoundFolder, speaker: Speaker, base: Sequence[RowScore] | None, is_base: bool
) -> Measured:
    """Return a model's worth; the scores of the held-out rows are written into the round's folder.

    Args:
        course: of the run.
        folder: of the round.
        speaker: the model.
        base: scores of the same rows under the model that the first round begins with; None of that one.
        is_base: whether nothing was trained yet, so that there is no drift to measure.

    Raises:
        NotTrainedError: the model gives no numbers any more.
    """
    trained = speaker.trained
    with torch.autocast(trained.model.device.type, torch.bfloat16, enabled=course.is_bf16):
        scores = score_rows(
            trained.model, course.renderer, course.held_out, course.task, course.evaluation, trained.stop_ids,
            course.max_length, objective_facts(course.recipe.objective).head,
        )  # fmt: skip
    if not all(math.isfinite(score.negative_log_likelihood) for score in scores):
        raise NotTrainedError("the loss of held-out rows is not a number")
    write_json(folder.scores, [dataclasses.asdict(score) for score in scores])
    metrics = summarize(scores, course.task, course.evaluation, course.seed, base)
    return Measured(metrics, _regression(course, speaker), None if is_base else _drift(course, speaker, scores))


def read_scores(folder: RoundFolder) -> list[RowScore]:
    """Return the scores that a round has written."""
    return [_score(values) for values in read_json(folder.scores)]


def _score(values: dict[str, Any]) -> RowScore:
    paired = {key: tuple(values[key]) for key in ("rejected", "values", "tags", "reference_tags") if values[key]}
    return RowScore(**{**values, "alternatives": tuple(values["alternatives"]), **paired})


def _regression(course: Course, speaker: Speaker) -> dict[str, Any] | None:
    named = course.settings.regression
    if named is None:
        return None
    questions = read_questions(None if named == _BUNDLED else named)
    conversations = [as_turns(question.prompt) for question in questions]
    sampling = {"temperature": 0.0, "max_new_tokens": _ANSWER_TOKENS}
    answers = speaker.here.answer(conversations, 1, sampling, 0)
    right = [is_right(question, answer) for question, (answer,) in zip(questions, answers, strict=True)]
    return {"questions": len(questions), "right": sum(right) / len(right)}


def _drift(course: Course, speaker: Speaker, scores: Sequence[RowScore]) -> float | None:
    answered = [
        (turns_of(example), score.answer or str(example.reference))
        for example, score in zip(course.held_out, scores, strict=True)
        if score.answer or example.reference
    ][:_DRIFT_ROWS]
    if not answered:
        return None
    policy, trained = speaker.here, speaker.trained
    if trained.has_adapter:
        return policy.kl(answered).mean
    return on_base(trained, lambda base: policy.kl(answered, base).mean)
