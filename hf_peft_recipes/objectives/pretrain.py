"""Continued pretraining: next-token loss on every token of raw text, by the trainer of supervised fine-tuning."""

from hf_peft_recipes.objectives.sft import TASK_TYPE, build_trainer, model_class, training_arguments

__all__ = ["TASK_TYPE", "build_trainer", "model_class", "training_arguments"]
