"""Supervised fine-tuning: next-token loss on the answers."""

from typing import Any

from trl import SFTConfig, SFTTrainer

from hf_peft_recipes.data import PreparedData
from hf_peft_recipes.objectives.trainers import House, make_arguments, make_trainer


class _Trainer(House, SFTTrainer):
    pass


def training_arguments(arguments: dict[str, Any]) -> Any:
    """Return TRL's config object; see `Objective`."""
    return make_arguments(SFTConfig, arguments)


def build_trainer(model: Any, tokenizer: Any, data: PreparedData, arguments: Any, callbacks: list[Any]) -> Any:
    """Return TRL's trainer, ready to train; see `Objective`."""
    return make_trainer(_Trainer, model, tokenizer, data, arguments, callbacks)
