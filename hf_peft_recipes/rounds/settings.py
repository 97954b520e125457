"""What a recipe says of its rounds, checked before anything is loaded."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from hf_peft_recipes.errors import UserError
from hf_peft_recipes.metric_facts import DEFINITIONS
from hf_peft_recipes.spec import ResolvedRecipe
from hf_peft_recipes.spec.objectives import objective_facts

_PLACES = ("prompt", "completion", "feedback", "reference")
_AT_LEAST = {"rounds": 1, "samples": 1, "refinements": 1, "refine_steps": 1, "answers": 1, "prompts": 1}
_LEARN = ("text", "pairs", "judged")
"""Shapes of the rows that are made of feedback."""
_SHARES = ("accept", "likeliest", "replay", "max_failed", "regression_falls_at_most")


@dataclass(frozen=True)
class Rounds:
    """The recipe's section `feedback`; `recipes/parts/rounds.yaml` says what each value does."""

    rounds: int
    prompts: int | None
    samples: int
    sampling: Mapping[str, Any]
    generated_tokens: int | None
    engine: str
    source: str
    accept: float
    refine: str | None
    refine_template: str
    refinements: int
    refine_steps: int
    select: str
    answers: int
    likeliest: float
    start: str
    replay: float
    metric: str | None
    falls_at_most: float
    regression: str | None
    regression_falls_at_most: float
    on_error: str
    max_failed: float
    compare: bool
    options: Mapping[str, Any]
    engine_options: Mapping[str, Any]

    @property
    def begins_at_base(self) -> bool:
        """Whether each round trains anew, rather than going on with what the one before it has learned."""
        return self.start == "base"


def read_rounds(recipe: ResolvedRecipe) -> Rounds:
    """Return what the recipe says of its rounds.

    Raises:
        UserError: no source of feedback, a number out of its range, a template without the prompt, an objective that
            learns from no answers.
    """
    section = recipe.section("feedback") or {}
    nested = {key: section.get(key) or {} for key in ("sampling", "options", "engine_options")}
    settings = Rounds(**{each.name: section.get(each.name) for each in fields(Rounds)} | nested)
    if settings.accept is None:
        raise UserError(
            f"feedback.rounds: {recipe.name} learns from its data; what learns from feedback extends `rounds`: ilf, "
            "rft, star, self_refine_sft, feedback_dpo, feedback_kto"
        )
    if objective_facts(recipe.objective).shape not in _LEARN:
        raise UserError(f"feedback.rounds: {recipe.objective} learns from no judged answers; sft, dpo, kto do")
    if settings.source is None:
        raise UserError(
            "feedback.source is missing: who judges the answers? --feedback.source numeric, exact, label, regex, "
            "unit_tests, judge, self, human … or module:function"
        )
    for key, least in _AT_LEAST.items():
        value = getattr(settings, key)
        if value is not None and value < least:
            raise _out_of_range(recipe, key, f"at least {least}")
    for key in _SHARES:
        if not 0 <= getattr(settings, key) <= 1:
            raise _out_of_range(recipe, key, "a share from 0 to 1")
    if settings.likeliest == 0 or settings.accept == 0:
        raise _out_of_range(recipe, "likeliest" if settings.likeliest == 0 else "accept", "more than 0")
    if settings.metric is not None and settings.metric not in DEFINITIONS:
        raise UserError(f"feedback.metric {settings.metric!r}: no such metric (known: {', '.join(DEFINITIONS)})")
    if settings.compare and objective_facts(recipe.objective).shape != "text":
        raise UserError(f"feedback.compare holds rounds against plain SFT, and {recipe.objective} learns otherwise")
    if settings.source == "file" and settings.rounds > 1:
        raise UserError("feedback.source file is feedback on answers that were given: one round (--feedback.rounds 1)")
    if settings.refine:
        _check_template(settings.refine_template)
    return settings


def _check_template(template: str) -> None:
    named = re.findall(r"\{(\w*)\}", template)
    unknown = [name for name in named if name not in _PLACES]
    if unknown or "prompt" not in named:
        told = f"{{{unknown[0]}}} is none of its places" if unknown else "{prompt} is missing"
        raise UserError(f"feedback.refine_template: {told}; there are {', '.join(f'{{{name}}}' for name in _PLACES)}")


def _out_of_range(recipe: ResolvedRecipe, key: str, wanted: str) -> UserError:
    entry = recipe.entries[("feedback", key)]
    return UserError(f"feedback.{key} = {entry.value} (from {entry.origin}): {wanted} is wanted")
