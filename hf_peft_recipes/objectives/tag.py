"""Token classification: a tag for every word of a sentence."""

from typing import Any

from transformers import Trainer

from hf_peft_recipes.data import PreparedData
from hf_peft_recipes.heads import token_classification
from hf_peft_recipes.objectives.classify import training_arguments
from hf_peft_recipes.objectives.trainers import House, make_trainer

__all__ = ["build_trainer", "training_arguments"]


class _Trainer(House, Trainer):
    pass


def build_trainer(model: Any, tokenizer: Any, data: PreparedData, arguments: Any, callbacks: list[Any]) -> Any:
    """Return transformers' trainer, ready to train; see `Objective`."""
    collator = token_classification.collator(tokenizer)
    return make_trainer(_Trainer, model, tokenizer, data, arguments, callbacks, data_collator=collator)
