"""Supervised fine-tuning: next-token loss on the answers."""

from typing import Any

from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

from hf_peft_recipes.data import PreparedData
from hf_peft_recipes.errors import UserError

TASK_TYPE = "CAUSAL_LM"


class _Trainer(SFTTrainer):
    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write no card: upstream's, written into every checkpoint, names a local path as the base."""


def model_class() -> Any:
    """Return the class that loads the base."""
    return AutoModelForCausalLM


def training_arguments(arguments: dict[str, Any]) -> Any:
    """Return TRL's config object.

    Raises:
        UserError: upstream refuses a value.
    """
    try:
        return SFTConfig(**arguments)
    except (ValueError, TypeError) as error:
        raise UserError(f"training: {' '.join(str(error).split())}") from None


def build_trainer(model: Any, tokenizer: Any, data: PreparedData, arguments: Any, callbacks: list[Any]) -> Any:
    """Return TRL's trainer, ready to train.

    Args:
        model: with its adapter, or to be trained whole.
        tokenizer: of the model.
        data: token rows with labels.
        arguments: as `training_arguments` makes them.
        callbacks: of transformers' Trainer.

    Raises:
        UserError: upstream refuses the combination.
    """
    trainable = {name: tensor.data for name, tensor in model.named_parameters() if tensor.requires_grad}
    try:
        trainer = _Trainer(
            model=model,
            args=arguments,
            train_dataset=data.train,
            eval_dataset=data.validation,
            processing_class=tokenizer,
            callbacks=callbacks,
        )
    except ValueError as error:
        raise UserError(f"training: {' '.join(str(error).split())}") from None
    # TRL casts the adapter of a quantised base to bfloat16, where steps at usual rates are lost in rounding.
    for name, tensor in model.named_parameters():
        if name in trainable:
            tensor.data = trainable[name]
    return trainer
