"""A reward model that a run of the objective `reward` trained."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_peft_recipes.errors import UserError
from hf_peft_recipes.feedback.asking import Asked, Feedback, Policy, SourceError
from hf_peft_recipes.heads import find_head
from hf_peft_recipes.results import RESULT_FILE, read_result
from hf_peft_recipes.spec.objectives import objective_facts

if TYPE_CHECKING:
    from hf_peft_recipes.finished import TrainedModel

_BATCH_TOKENS = 16_384
"""Tokens that go through the model at a time, padding included."""


class RewardModel:
    """A trained score, loaded when it is first asked for.

    What it gives has no scale: only differences mean something, σ(r₁ − r₂) being how likely the first answer is
    preferred (Bradley and Terry 1952). So a score here is σ(r − threshold): how likely an answer is preferred to one
    that is just good enough; what is more likely preferred than not is accepted.
    """

    name = "reward_model"
    needs_reference = False

    def __init__(self, *, folder: str, threshold: float = 0.0) -> None:
        """Args:
            folder: of the run.
            threshold: the reward of an answer that is just good enough.

        Raises:
            UserError: the folder holds no run of a reward model.
        """
        self._folder, self._threshold = Path(folder).expanduser(), threshold
        self._record = read_result(self._folder)
        objective = str(self._record["objective"])
        if objective_facts(objective).head != "reward":
            raise UserError(f"{folder!r} is a run of {objective}; one of `train reward` is wanted")
        content = (self._folder / RESULT_FILE).read_bytes()
        self.version = f"{hashlib.sha256(content).hexdigest()[:8]}>{threshold:g}"
        self._loaded: TrainedModel | None = None

    def judge(self, asked: Sequence[Asked], policy: Policy | None) -> Iterator[tuple[Asked, Feedback | SourceError]]:
        """Yield the score of each completion, batch by batch, the longest ones first.

        Raises:
            UserError: the model cannot be loaded.
        """
        if not asked:
            return
        if self._loaded is None:
            from hf_peft_recipes.upstream_noise import quiet

            with quiet():
                from hf_peft_recipes.finished import load, read_recipe

                self._loaded = load(self._folder, read_recipe(self._folder), self._record)
        rows = self._rows(asked, self._loaded)
        for number, row in enumerate(rows):
            if isinstance(row, str):
                yield asked[number], SourceError(f"{self.name}: {row}")
        for number, reward in self._rewards({at: row for at, row in enumerate(rows) if not isinstance(row, str)}):
            yield asked[number], self._feedback(reward)

    def _feedback(self, reward: float) -> Feedback | SourceError:
        if not math.isfinite(reward):
            return SourceError(f"{self.name}: the score is {reward}")
        above = reward - self._threshold
        # Of large negative numbers the exponential would overflow.
        score = 1 / (1 + math.exp(-above)) if above >= 0 else math.exp(above) / (1 + math.exp(above))
        return Feedback(score, above > 0)

    def _rows(self, asked: Sequence[Asked], loaded: "TrainedModel") -> list[Any]:
        """Return each conversation as tokens, or why it cannot be one."""
        from hf_peft_recipes.data import Example
        from hf_peft_recipes.data.formats import BadRowError

        examples = [Example((*one.prompt, {"role": "assistant", "content": one.completion})) for one in asked]
        limit = self._record["data"]["ledger"]["max_length"]
        made = list(loaded.renderer.rows(examples))
        return [
            str(row) if isinstance(row, BadRowError)
            else row.cut(limit, False)[0] if limit is not None and row.length > limit
            else row
            for row in made
        ]  # fmt: skip

    def _rewards(self, rows: dict[int, Any]) -> Iterator[tuple[int, float]]:
        import torch

        from hf_peft_recipes.generation import inference

        assert self._loaded is not None, "it was loaded"
        model, recipe = self._loaded.model, self._loaded.recipe
        head: Any = find_head(recipe.objective)
        collate = head.collator(self._loaded.renderer.tokenizer)
        order = sorted(rows, key=lambda at: -rows[at].length)
        while order:
            number = max(1, _BATCH_TOKENS // rows[order[0]].length)
            batch, order = order[:number], order[number:]
            bfloat16 = bool(recipe.value("training.bf16"))
            with inference(model), torch.autocast(model.device.type, torch.bfloat16, enabled=bfloat16):
                found, _, _ = head.logits(model, collate([rows[at].columns() for at in batch]))
            yield from zip(batch, found[:, 0].tolist(), strict=True)
