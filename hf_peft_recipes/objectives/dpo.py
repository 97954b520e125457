"""Direct preference optimisation: the wanted answer likelier than the refused one, against the model as it was.

With an adapter that is what upstream keeps as a second adapter, a copy of the first one before any step: after
supervised fine-tuning it is that fine-tuned model, and not the base. A model trained whole is copied whole.
"""

import copy
from typing import Any

from trl import DPOConfig, DPOTrainer

from hf_peft_recipes.data import PreparedData
from hf_peft_recipes.data.shapes import SHAPES
from hf_peft_recipes.objectives.collation import PairCollator
from hf_peft_recipes.objectives.trainers import House, make_arguments, make_trainer


class _Trainer(House, DPOTrainer):
    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        """Leave the rows as they are: tokens, with labels that say which belong to an answer."""
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = [*SHAPES["pairs"].columns, "ref_chosen_logps", "ref_rejected_logps"]


def training_arguments(arguments: dict[str, Any]) -> Any:
    """Return TRL's config object; see `Objective`."""
    return make_arguments(DPOConfig, arguments)


def build_trainer(model: Any, tokenizer: Any, data: PreparedData, arguments: Any, callbacks: list[Any]) -> Any:
    """Return TRL's trainer, ready to train; see `Objective`."""
    return make_trainer(
        _Trainer, model, tokenizer, data, arguments, callbacks,
        data_collator=PairCollator(tokenizer.pad_token_id), ref_model=reference_of(model),
    )  # fmt: skip


def reference_of(model: Any) -> Any:
    """Return what a model is compared with: a copy of one that is trained whole, None where an adapter is."""
    return None if hasattr(model, "peft_config") else copy.deepcopy(model).requires_grad_(False)
