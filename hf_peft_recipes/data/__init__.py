"""From what a person has to token rows that can be trained on, with every row accounted for."""

from hf_peft_recipes.data.checks import SAMPLE, Check, require_serving
from hf_peft_recipes.data.formats import Example
from hf_peft_recipes.data.loading import read, tokenize
from hf_peft_recipes.data.preparation import PreparedData
from hf_peft_recipes.data.reading import Examples
from hf_peft_recipes.data.rendering import Renderer

__all__ = [
    "SAMPLE",
    "Check",
    "Example",
    "Examples",
    "PreparedData",
    "Renderer",
    "read",
    "require_serving",
    "tokenize",
]
