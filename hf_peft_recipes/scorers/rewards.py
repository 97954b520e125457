"""Rewards: what an answer is worth, by every function that the recipe names.

A function that raises, or returns something else than one finite number an answer, ends the run: upstream would take
a NaN for a row that is to be left out, and learn from the others.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hf_peft_recipes.errors import RewardError, UserError
from hf_peft_recipes.scorers.arguments import told
from hf_peft_recipes.scorers.configured import ConfiguredScorer, read_scorers
from hf_peft_recipes.spec import ResolvedRecipe
from hf_peft_recipes.spec.entries import is_of_hub
from hf_peft_recipes.spec.objectives import objective_facts

ENTRY = ("rewards", "functions")
_SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class Answers:
    """Answers to some prompts, one each."""

    prompts: Sequence[str]
    """As they are served."""
    conversations: Sequence[str | None]
    """The same as JSON of their messages; None without a chat template."""
    references: Sequence[str | None]
    texts: Sequence[str]
    ids: Sequence[Sequence[int]]

    def __len__(self) -> int:
        return len(self.texts)

    def only(self, row: int) -> "Answers":
        """Return the one answer."""
        fields = (self.prompts, self.conversations, self.references, self.texts, self.ids)
        return Answers(*([values[row]] for values in fields))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Reward:
    """One reward function, held to what it must return."""

    scorer: ConfiguredScorer
    weight: float = 1.0

    @property
    def name(self) -> str:
        """As it is called in metrics and logs."""
        return self.scorer.name

    def score(self, answers: Answers, **further: Any) -> list[float]:
        """Return the reward of every answer, unweighted.

        Args:
            answers: to be scored.
            further: what upstream hands to a function beside them.

        Raises:
            RewardError: the function raised, or returned other things than numbers.
        """
        function = self._of_users if self.scorer.function is not None else self._of_scorer
        values: list[float] = function(answers, further)
        return values

    def _of_scorer(self, answers: Answers, further: dict[str, Any]) -> list[float]:
        assert self.scorer.score is not None, "a scorer scores, or a function does"
        values = []
        for row, (text, reference) in enumerate(zip(answers.texts, answers.references, strict=True)):
            try:
                value = self.scorer.score(text.strip(), reference, tokens=len(answers.ids[row]))
            except Exception as error:
                raise self._failed(f"raised {told(error)}", answers, row) from error
            values.append(self._number(value, answers, row))
        return values

    def _of_users(self, answers: Answers, further: dict[str, Any]) -> list[float]:
        try:
            returned = self._called(answers, further)
        except Exception as error:
            raise self._failed(f"raised {told(error)}", answers, self._culprit(answers, further)) from error
        try:
            values = list(returned)
        except TypeError:
            raise self._failed(f"returned {type(returned).__name__}, not a list of numbers", answers, 0) from None
        if len(values) != len(answers):
            raise self._failed(f"returned {len(values)} values for {len(answers)} answers", answers, 0)
        return [self._number(value, answers, row) for row, value in enumerate(values)]

    def _called(self, answers: Answers, further: dict[str, Any]) -> Any:
        assert self.scorer.function is not None, "a scorer scores, or a function does"
        prompts: Sequence[Any] = answers.prompts
        completions: Sequence[Any] = answers.texts
        if answers.conversations and answers.conversations[0] is not None:
            # As upstream hands them over where there is a chat template.
            prompts = [json.loads(str(conversation)) for conversation in answers.conversations]
            completions = [[{"role": "assistant", "content": text}] for text in answers.texts]
        return self.scorer.function(
            prompts=prompts, completions=completions, completion_ids=list(answers.ids),
            reference=list(answers.references), **further,
        )  # fmt: skip

    def _culprit(self, answers: Answers, further: dict[str, Any]) -> int:
        """Return the first row on which the function fails by itself; the first one where none does."""
        for row in range(len(answers)):
            try:
                self._called(answers.only(row), further)
            except Exception:
                return row
        return 0

    def _number(self, value: Any, answers: Answers, row: int) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise self._failed(f"returned {value!r}, not a number", answers, row) from None
        if not math.isfinite(number):
            raise self._failed(f"returned {number}", answers, row)
        return number

    def _failed(self, what: str, answers: Answers, row: int) -> RewardError:
        told = f"the answer {_short(answers.texts[row])} to {_short(answers.prompts[row])}"
        reference = answers.references[row]
        beside = "" if reference is None else f" (reference {_short(reference)})"
        return RewardError(f"reward {self.name!r} {what}, on {told}{beside}")


def read_rewards(recipe: ResolvedRecipe, callables: dict[str, Callable[..., Any]] | None = None) -> list[Reward]:
    """Return the reward functions of a recipe, with their weights; none where its objective has no use for any.

    Args:
        recipe: resolved.
        callables: functions that the caller has, by the path that stands in the recipe.

    Raises:
        UserError: no reward, or one that cannot be had; another number of weights.
    """
    if not objective_facts(recipe.objective).is_rewarded:
        return []
    entry, weights = recipe.entries.get(ENTRY), recipe.value("training.reward_weights")
    if entry is None or not entry.value:
        raise UserError(
            f"{recipe.objective} needs a reward: --rewards exact, label, regex, length, format, unit_tests …, "
            "or module:function"
        )
    named = entry.value if isinstance(entry.value, list) else [entry.value]
    words = [str(word["scorer"] if isinstance(word, dict) and "scorer" in word else word) for word in named]
    if is_of_hub(entry.origin) and any(":" in word for word in words):
        raise UserError(f"rewards (from {entry.origin}) name code of this machine: who runs it does, by --rewards")
    allowed = bool(recipe.value("allow_code_execution"))
    scorers = read_scorers(named, entry.origin, callables or {}, allowed)
    weights = [1.0] * len(scorers) if weights is None else weights if isinstance(weights, list) else [weights]
    if len(weights) != len(scorers) or not all(isinstance(weight, (int, float)) for weight in weights):
        names = ", ".join(scorer.name for scorer in scorers)
        raise UserError(f"training.reward_weights {weights}: a number is wanted for each of the rewards ({names})")
    return [Reward(scorer, float(weight)) for scorer, weight in zip(scorers, weights, strict=True)]


def _short(text: str) -> str:
    said = " ".join(text.split())
    return repr(said if len(said) <= _SHOWN_CHARACTERS else f"{said[:_SHOWN_CHARACTERS]}…")
