"""From what a person has to token rows that can be trained on, with every row accounted for."""

from hf_peft_recipes.data.checks import SAMPLE, Check, require_serving
from hf_peft_recipes.data.formats import Example
from hf_peft_recipes.data.preparation import PreparedData, read_examples, tokenize_data
from hf_peft_recipes.data.rendering import Renderer

__all__ = [
    "SAMPLE",
    "Check",
    "Example",
    "PreparedData",
    "Renderer",
    "read_examples",
    "require_serving",
    "tokenize_data",
]
