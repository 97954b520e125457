"""Kahneman-Tversky optimisation: single answers that are wanted or not, against the model as it was before."""

from dataclasses import replace
from typing import Any

from trl import KTOConfig, KTOTrainer

from hf_peft_recipes.data import PreparedData
from hf_peft_recipes.data.shapes import SHAPES
from hf_peft_recipes.objectives.collation import JudgedCollator
from hf_peft_recipes.objectives.dpo import reference_of
from hf_peft_recipes.objectives.trainers import House, make_arguments, make_trainer


class _Trainer(House, KTOTrainer):
    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        """Leave the rows as they are: tokens, with labels that say which belong to the answer."""
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = [*SHAPES["judged"].columns, "ref_logps", "ref_KL_logps"]


def training_arguments(arguments: dict[str, Any]) -> Any:
    """Return TRL's config object; see `Objective`."""
    return make_arguments(KTOConfig, arguments)


def build_trainer(model: Any, tokenizer: Any, data: PreparedData, arguments: Any, callbacks: list[Any]) -> Any:
    """Return TRL's trainer, ready to train; see `Objective`."""
    # Upstream takes the rows in order, and two answers to one prompt side by side would be no estimate of the KL.
    shuffled = replace(data, train=data.train.shuffle(seed=arguments.seed))
    return make_trainer(
        _Trainer, model, tokenizer, shuffled, arguments, callbacks,
        data_collator=JudgedCollator(tokenizer.pad_token_id), ref_model=reference_of(model),
    )  # fmt: skip
