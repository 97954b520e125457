"""Group relative policy optimisation: each answer's advantage is its reward against those of the same prompt."""

from typing import Any

from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer

from hf_peft_recipes.data import PreparedData
from hf_peft_recipes.objectives import rollouts
from hf_peft_recipes.scorers.rewards import Reward

TASK_TYPE = "CAUSAL_LM"


class _Trainer(rollouts.Rollouts, GRPOTrainer):
    pass


def model_class() -> Any:
    """Return the class that loads the base."""
    return AutoModelForCausalLM


def training_arguments(arguments: dict[str, Any]) -> Any:
    """Return TRL's config object; see `Objective`."""
    return rollouts.training_arguments(GRPOConfig, arguments)


def build_trainer(
    model: Any, tokenizer: Any, data: PreparedData, arguments: Any, callbacks: list[Any], rewards: list[Reward]
) -> Any:
    """Return TRL's trainer, ready to train; see `Objective`."""
    return rollouts.build_trainer(_Trainer, model, tokenizer, data, arguments, callbacks, rewards)
