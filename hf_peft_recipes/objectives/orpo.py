"""Odds-ratio preference optimisation: the loss of the wanted answer, and the odds of it over the refused one.

Upstream counts the prompt's tokens in the first of the two; the paper, and this, only those of the answer.
"""

from typing import Any

from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from hf_peft_recipes.data import PreparedData
from hf_peft_recipes.data.rendering import IGNORED
from hf_peft_recipes.objectives.collation import SideCollator
from hf_peft_recipes.objectives.trainers import House, make_arguments, make_trainer


class _Trainer(House, ORPOTrainer):
    def tokenize_row(self, feature: Any, *_: Any, **__: Any) -> dict[str, Any]:
        """Leave the row as it is: tokens, with labels that say which belong to an answer."""
        return {}

    def concatenated_forward(self, model: Any, batch: dict[str, Any]) -> tuple[Any, ...]:
        """Return upstream's figures, but for the loss of the wanted answers."""
        chosen, rejected, chosen_logits, rejected_logits, _, *router = super().concatenated_forward(model, batch)
        # The log-probabilities are means over each answer's tokens.
        tokens = (batch["chosen_labels"][:, 1:] != IGNORED).sum(1).to(chosen.device)
        loss = -(chosen * tokens).sum() / tokens.sum()
        return (chosen, rejected, chosen_logits, rejected_logits, loss, *router)


def training_arguments(arguments: dict[str, Any]) -> Any:
    """Return TRL's config object; see `Objective`."""
    return make_arguments(ORPOConfig, arguments)


def build_trainer(model: Any, tokenizer: Any, data: PreparedData, arguments: Any, callbacks: list[Any]) -> Any:
    """Return TRL's trainer, ready to train; see `Objective`."""
    # Upstream keeps the columns with its own collator only.
    arguments.remove_unused_columns = False
    trainer = make_trainer(
        _Trainer, model, tokenizer, data, arguments, callbacks, data_collator=SideCollator(tokenizer.pad_token_id)
    )
    # Upstream warns at every batch of a collator that is not its own; this one gives the same columns.
    trainer.use_dpo_data_collator = True
    return trainer
