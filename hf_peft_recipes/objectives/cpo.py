"""Contrastive preference optimisation, and SimPO: pairs of answers without a reference model."""

from typing import Any

from trl.experimental.cpo import CPOConfig, CPOTrainer

from hf_peft_recipes.data import PreparedData
from hf_peft_recipes.objectives.collation import SideCollator
from hf_peft_recipes.objectives.trainers import House, make_arguments, make_trainer


class _Trainer(House, CPOTrainer):
    def tokenize_row(self, feature: Any, *_: Any, **__: Any) -> dict[str, Any]:
        """Leave the row as it is: tokens, with labels that say which belong to an answer."""
        return {}


def training_arguments(arguments: dict[str, Any]) -> Any:
    """Return TRL's config object; see `Objective`."""
    return make_arguments(CPOConfig, arguments)


def build_trainer(model: Any, tokenizer: Any, data: PreparedData, arguments: Any, callbacks: list[Any]) -> Any:
    """Return TRL's trainer, ready to train; see `Objective`."""
    # Upstream keeps the columns with its own collator only.
    arguments.remove_unused_columns = False
    return make_trainer(
        _Trainer, model, tokenizer, data, arguments, callbacks, data_collator=SideCollator(tokenizer.pad_token_id)
    )
