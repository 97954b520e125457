"""What all of upstream's trainers are asked alike, whatever they train for."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hf_peft_recipes.checkpoints.sealed import SealedCheckpoints
from hf_peft_recipes.checkpoints.split import SplitCheckpoints
from hf_peft_recipes.data import PreparedData
from hf_peft_recipes.errors import UserError


class House(SplitCheckpoints, SealedCheckpoints):
    """A trainer, mixed in before upstream's: sealed checkpoints, and no model card, which would name a local path."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write nothing."""

    def _run_epoch(self, *arguments: Any, **options: Any) -> None:
        """Train nothing where the last step is done; upstream, going on from there, would make one more."""
        if self.state.global_step >= self.state.max_steps:
            trainer: Any = self
            trainer.control.should_training_stop = True
            return
        upstream: Any = super()
        upstream._run_epoch(*arguments, **options)


def make_arguments(config_class: Any, arguments: dict[str, Any]) -> Any:
    """Return upstream's config object.

    Args:
        config_class: of the trainer.
        arguments: its keyword arguments.

    Raises:
        UserError: upstream refuses a value.
    """
    try:
        return config_class(**arguments)
    except (ValueError, TypeError) as error:
        raise UserError(f"training: {' '.join(str(error).split())}") from None


@contextmanager
def _begun(model: Any) -> Iterator[None]:
    """Let a copy of the adapter, as trainers make it, begin as any: PiSSA's would take from the base once more."""
    configs = getattr(model, "peft_config", {}).values()
    starts = [(config, config.init_lora_weights) for config in configs if hasattr(config, "init_lora_weights")]
    for config, _ in starts:
        config.init_lora_weights = True
    try:
        yield
    finally:
        for config, start in starts:
            config.init_lora_weights = start


def make_trainer(
    trainer_class: Any,
    model: Any,
    tokenizer: Any,
    data: PreparedData,
    arguments: Any,
    callbacks: list[Any],
    **further: Any,
) -> Any:
    """Return upstream's trainer, ready to train, the trainable tensors in the dtype that they came in.

    Args:
        trainer_class: of upstream.
        model: with its adapter, or to be trained whole.
        tokenizer: of the model.
        data: rows of the objective's shape.
        arguments: as `make_arguments` makes them.
        callbacks: of transformers' Trainer.
        further: keyword arguments of this trainer alone.

    Raises:
        UserError: upstream refuses the combination.
    """
    trainable = {name: tensor.data for name, tensor in model.named_parameters() if tensor.requires_grad}
    try:
        with _begun(model):
            trainer = trainer_class(
                model=model, args=arguments, train_dataset=data.train, eval_dataset=data.validation,
                processing_class=tokenizer, callbacks=callbacks, **further,
            )  # fmt: skip
    except (ValueError, NotImplementedError) as error:
        raise UserError(f"training: {' '.join(str(error).split())}") from None
    # TRL casts the adapter of a quantised base to bfloat16, where steps at usual rates are lost in rounding.
    for name, tensor in model.named_parameters():
        if name in trainable:
            tensor.data = trainable[name]
    return trainer
