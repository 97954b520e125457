"""Supervised fine-tuning: next-token loss on the answers."""

from typing import Any

from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

from hf_peft_recipes.data import PreparedData
from hf_peft_recipes.objectives.trainers import Cardless, make_arguments, make_trainer

TASK_TYPE = "CAUSAL_LM"


class _Trainer(Cardless, SFTTrainer):
    pass


def model_class() -> Any:
    """Return the class that loads the base."""
    return AutoModelForCausalLM


def training_arguments(arguments: dict[str, Any]) -> Any:
    """Return TRL's config object; see `Objective`."""
    return make_arguments(SFTConfig, arguments)


def build_trainer(model: Any, tokenizer: Any, data: PreparedData, arguments: Any, callbacks: list[Any]) -> Any:
    """Return TRL's trainer, ready to train; see `Objective`."""
    return make_trainer(_Trainer, model, tokenizer, data, arguments, callbacks)
