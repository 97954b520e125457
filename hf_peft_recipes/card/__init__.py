"""The model card of a published run: what it is, whether it works, how to use it, how it was made."""

from hf_peft_recipes.card.page import make_card
from hf_peft_recipes.card.publication import Publication

__all__ = ["Publication", "make_card"]
