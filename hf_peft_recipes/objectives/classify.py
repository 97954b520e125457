"""Sequence classification: a label for a whole text, by an encoder (BERT) or at the last token of a decoder (Llama)."""

from typing import Any

from transformers import Trainer

from hf_peft_recipes.data import PreparedData
from hf_peft_recipes.heads import sequence_classification
from hf_peft_recipes.objectives.task_arguments import TaskArguments
from hf_peft_recipes.objectives.trainers import House, make_arguments, make_trainer


class _Trainer(House, Trainer):
    pass


def training_arguments(arguments: dict[str, Any]) -> Any:
    """Return transformers' config object; see `Objective`."""
    return with_labels(make_arguments(TaskArguments, arguments))


def with_labels(arguments: Any) -> Any:
    """Return the arguments of a trainer whose rows hold what the model takes, and nothing else."""
    arguments.remove_unused_columns = False
    # PEFT's wrapper hides from transformers what the labels are called; and of predictions the loss is all that counts.
    arguments.label_names, arguments.prediction_loss_only = ["labels"], True
    return arguments


def build_trainer(model: Any, tokenizer: Any, data: PreparedData, arguments: Any, callbacks: list[Any]) -> Any:
    """Return transformers' trainer, ready to train; see `Objective`."""
    collator = sequence_classification.collator(tokenizer)
    return make_trainer(_Trainer, model, tokenizer, data, arguments, callbacks, data_collator=collator)
