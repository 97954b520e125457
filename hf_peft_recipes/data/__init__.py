"""From what a person has to token rows that can be trained on, with every row accounted for."""

from hf_peft_recipes.data.checks import SAMPLE, Check, require, require_serving
from hf_peft_recipes.data.encoders import ENCODERS, Encoder, Maker
from hf_peft_recipes.data.formats import Example
from hf_peft_recipes.data.labels import find_labels
from hf_peft_recipes.data.loading import read, tokenize
from hf_peft_recipes.data.preparation import PreparedData
from hf_peft_recipes.data.reading import Examples
from hf_peft_recipes.data.rendering import Renderer

__all__ = [
    "ENCODERS", "SAMPLE", "Check", "Encoder", "Example", "Examples", "Maker", "PreparedData", "Renderer", "find_labels",
    "read", "require", "require_serving", "tokenize",
]  # fmt: skip
