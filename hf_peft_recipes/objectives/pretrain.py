"""Continued pretraining: next-token loss on every token of raw text, by the trainer of supervised fine-tuning."""

from hf_peft_recipes.objectives.sft import build_trainer, training_arguments

__all__ = ["build_trainer", "training_arguments"]
