"""Reward modelling: a score for an answer, higher for the wanted one of a pair than for the refused one."""

from typing import Any

from trl import RewardConfig, RewardTrainer

from hf_peft_recipes.data import PreparedData
from hf_peft_recipes.data.shapes import SHAPES
from hf_peft_recipes.objectives.collation import PairCollator
from hf_peft_recipes.objectives.trainers import House, make_arguments, make_trainer


class _Trainer(House, RewardTrainer):
    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        """Leave the rows as they are: tokens of both sides."""
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = list(SHAPES["pairs"].columns)


class _Collator(PairCollator):
    def __call__(self, rows: Any) -> dict[str, Any]:
        """Return the batch without what says where answers begin: a score is of the whole."""
        batch = super().__call__(rows)
        del batch["completion_mask"]
        return batch


def training_arguments(arguments: dict[str, Any]) -> Any:
    """Return TRL's config object; see `Objective`."""
    return make_arguments(RewardConfig, arguments)


def build_trainer(model: Any, tokenizer: Any, data: PreparedData, arguments: Any, callbacks: list[Any]) -> Any:
    """Return TRL's trainer, ready to train; see `Objective`."""
    collator = _Collator(tokenizer.pad_token_id)
    return make_trainer(_Trainer, model, tokenizer, data, arguments, callbacks, data_collator=collator)
