"""One file an objective: which trainer, which model class, which of PEFT's task types."""

from importlib import import_module
from typing import Any, Protocol

from hf_peft_recipes.data import PreparedData
from hf_peft_recipes.errors import UserError, did_you_mean

OBJECTIVES = {"sft": "hf_peft_recipes.objectives.sft"}
"""Objective to its module, imported when it is asked for."""


class Objective(Protocol):
    """What every file of this folder offers."""

    TASK_TYPE: str

    def model_class(self) -> Any:
        """Return the transformers class that loads the base."""

    def build_trainer(
        self, model: Any, tokenizer: Any, data: PreparedData, arguments: dict[str, Any], callbacks: list[Any]
    ) -> Any:
        """Return the TRL trainer, ready to train."""

    def training_arguments(self, arguments: dict[str, Any]) -> Any:
        """Return the config object that the trainer takes."""


def find_objective(name: str) -> Objective:
    """Return the objective `name`.

    Raises:
        UserError: there is none of that name.
    """
    if name not in OBJECTIVES:
        raise UserError(f"unknown objective {name!r}{did_you_mean(name, OBJECTIVES)}")
    module: Any = import_module(OBJECTIVES[name])
    return module
