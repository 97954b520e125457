"""REINFORCE leave-one-out: the baseline of an answer is the mean reward of the other answers to its prompt."""

from typing import Any

from transformers import AutoModelForCausalLM
from trl import RLOOConfig, RLOOTrainer

from hf_peft_recipes.data import PreparedData
from hf_peft_recipes.objectives import rollouts
from hf_peft_recipes.scorers.rewards import Reward

TASK_TYPE = "CAUSAL_LM"


class _Trainer(rollouts.Rollouts, RLOOTrainer):
    pass


def model_class() -> Any:
    """Return the class that loads the base."""
    return AutoModelForCausalLM


def training_arguments(arguments: dict[str, Any]) -> Any:
    """Return TRL's config object; see `Objective`."""
    return rollouts.training_arguments(RLOOConfig, arguments)


def build_trainer(
    model: Any, tokenizer: Any, data: PreparedData, arguments: Any, callbacks: list[Any], rewards: list[Reward]
) -> Any:
    """Return TRL's trainer, ready to train; see `Objective`."""
    return rollouts.build_trainer(_Trainer, model, tokenizer, data, arguments, callbacks, rewards)
