"""One file an objective: which trainer, with which arguments."""

from importlib import import_module
from typing import Any, Protocol

from hf_peft_recipes.data import PreparedData
from hf_peft_recipes.spec.objectives import objective_facts


class Objective(Protocol):
    """What every file of this folder offers that is named after an objective."""

    def training_arguments(self, arguments: dict[str, Any]) -> Any:
        """Return the config object that the trainer takes.

        Raises:
            UserError: upstream refuses a value.
        """

    def build_trainer(
        self, model: Any, tokenizer: Any, data: PreparedData, arguments: Any, callbacks: list[Any]
    ) -> Any:
        """Return the trainer, ready to train.

        Args:
            model: with its adapter, or to be trained whole.
            tokenizer: of the model.
            data: rows of the objective's shape, see `data.shapes`.
            arguments: as `training_arguments` makes them.
            callbacks: of transformers' Trainer.

        Objectives that are rewarded (`ObjectiveFacts.is_rewarded`) take the functions too, as `rewards`.

        Raises:
            UserError: upstream refuses the combination.
        """


def find_objective(name: str) -> Objective:
    """Return the objective `name`, its module imported.

    Raises:
        UserError: there is none of that name.
    """
    objective_facts(name)
    module: Any = import_module(f"hf_peft_recipes.objectives.{name}")
    return module
