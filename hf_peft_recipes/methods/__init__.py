"""What some methods need beside a configuration: a look at the data first, a hand in training, a form to be saved in.

PEFT leaves that to whoever calls it, and where nobody does, most of these adapters train as plain LoRA without a word.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from hf_peft_recipes.adapters import add_adapter, to_float32
from hf_peft_recipes.methods.step import Material, Step
from hf_peft_recipes.spec import ResolvedRecipe

__all__ = ["Material", "Method", "Step", "find_steps", "settings"]

STEPS = ("adalora", "eva", "lora_ga", "corda", "loftq", "ln_tuning", "virtual_tokens", "trainable_tokens", "loraplus")
"""Files of this folder; each has `serves(adapter)`, which says whether an adapter section needs it, and `make`."""


def find_steps(adapter: Mapping[str, Any] | None) -> list[Step]:
    """Return the steps that an adapter section asks for.

    Raises:
        UserError: a value of the section contradicts the step.
    """
    modules: list[Any] = [import_module(f"hf_peft_recipes.methods.{name}") for name in STEPS] if adapter else []
    return [module.make(adapter) for module in modules if module.serves(adapter)]


def settings(adapter: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments that PEFT is given for an adapter section: what is the steps' own is left out."""
    arguments = dict(adapter)
    for step in find_steps(adapter):
        arguments = step.settings(arguments)
    return arguments


class Method:
    """The steps of one run, asked in order at each moment of it."""

    def __init__(self, recipe: ResolvedRecipe) -> None:
        """Find the steps, and let what contradicts them fail now.

        Raises:
            UserError: a value of the recipe contradicts a step.
        """
        self._steps = find_steps(recipe.section("adapter"))
        for step in self._steps:
            step.check(recipe)

    def add_adapter(self, model: Any, adapter: Mapping[str, Any], task_type: str, material: Material) -> Any:
        """Return the model with its adapter, as `adapters.add_adapter` does, begun as the method has it.

        Raises:
            UserError: PEFT refuses the configuration, or the data do not do for the method.
        """
        arguments = dict(adapter)
        for step in self._steps:
            arguments = step.choose(step.settings(arguments), material)
        wrapped = add_adapter(model, arguments, task_type)
        for step in self._steps:
            step.begin(wrapped, material)
        # What PEFT makes anew has the base's precision.
        to_float32(wrapped)
        return wrapped

    @property
    def held(self) -> int:
        """How many numbers of trainable tensors stay as they are."""
        return sum(step.held for step in self._steps)

    def attach(self, trainer: Any) -> None:
        """Give the trainer what the method does while it trains."""
        for step in self._steps:
            step.attach(trainer)

    def finish(self, model: Any) -> None:
        """Bring the trained model into the form in which it is saved: what is said of it then holds for the files."""
        for step in self._steps:
            step.finish(model)
