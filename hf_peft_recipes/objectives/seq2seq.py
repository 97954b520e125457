"""Sequence to sequence: an encoder reads a text, a decoder writes another: translations, summaries, corrections."""

from typing import Any

from transformers import Seq2SeqTrainer

from hf_peft_recipes.data import PreparedData
from hf_peft_recipes.heads import seq2seq_lm
from hf_peft_recipes.objectives.classify import with_labels
from hf_peft_recipes.objectives.task_arguments import RewritingArguments
from hf_peft_recipes.objectives.trainers import House, make_arguments, make_trainer


class _Trainer(House, Seq2SeqTrainer):
    pass


def training_arguments(arguments: dict[str, Any]) -> Any:
    """Return transformers' config object; see `Objective`."""
    return with_labels(make_arguments(RewritingArguments, arguments))


def build_trainer(model: Any, tokenizer: Any, data: PreparedData, arguments: Any, callbacks: list[Any]) -> Any:
    """Return transformers' trainer, ready to train; see `Objective`."""
    collator = seq2seq_lm.collator(tokenizer)
    return make_trainer(_Trainer, model, tokenizer, data, arguments, callbacks, data_collator=collator)
