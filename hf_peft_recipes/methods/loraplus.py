"""LoRA+: B learns at a multiple of A's rate (Hayou et al. 2024, arXiv:2402.12354)."""

from collections.abc import Mapping
from typing import Any

from hf_peft_recipes.errors import UserError
from hf_peft_recipes.methods.step import Step
from hf_peft_recipes.spec import ResolvedRecipe

KEY = "loraplus_lr_ratio"
"""PEFT's name of the multiple, in `create_loraplus_optimizer`."""


def serves(adapter: Mapping[str, Any]) -> bool:
    """Return whether the section names a ratio."""
    return adapter.get(KEY) is not None


class LoraPlus(Step):
    """Has the trainer's optimizer, whichever `training.optim` names, made with two rates."""

    def check(self, recipe: ResolvedRecipe) -> None:
        """Raise a UserError where there is no B, or an optimizer that groups the weights itself."""
        kind, optimizer = str(self.adapter["peft_type"]).upper(), str(recipe.value("training.optim"))
        if kind not in ("LORA", "ADALORA"):
            raise UserError(f"adapter.{KEY} is LoRA's: {kind} has no matrices A and B")
        if self.adapter[KEY] < 1:
            raise UserError(f"adapter.{KEY} = {self.adapter[KEY]}: B's rate is a multiple of A's, 1 or more")
        if recipe.value("training.optim_target_modules"):
            raise UserError(
                f"adapter.{KEY} does not go with training.optim {optimizer}, which groups the weights itself"
            )

    def settings(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the section without the ratio, which PEFT's config has not."""
        return {key: value for key, value in arguments.items() if key != KEY}

    def attach(self, trainer: Any) -> None:
        """Put the making of the optimizer in place of the trainer's own."""
        from peft.optimizers import create_loraplus_optimizer

        def create_optimizer(model: Any = None) -> Any:
            if trainer.optimizer is None:
                model = trainer.model if model is None else model
                kind, keywords = trainer.get_optimizer_cls_and_kwargs(trainer.args, model)
                trainer.optimizer = create_loraplus_optimizer(
                    model, kind, loraplus_lr_ratio=self.adapter[KEY],
                    loraplus_weight_decay=trainer.args.weight_decay, **keywords,
                )  # fmt: skip
            return trainer.optimizer

        trainer.create_optimizer = create_optimizer


make = LoraPlus
