"""Arguments of transformers' own trainers, with the length of a row, which those of TRL have."""

from dataclasses import dataclass

from transformers import Seq2SeqTrainingArguments, TrainingArguments


@dataclass
class TaskArguments(TrainingArguments):
    """Of a classifier."""

    max_length: int | None = None
    """Tokens that a row may have; None for as many as the base was made for."""


@dataclass
class RewritingArguments(Seq2SeqTrainingArguments):
    """Of an encoder and a decoder."""

    max_length: int | None = None
    """Tokens that either side of a row may have."""
