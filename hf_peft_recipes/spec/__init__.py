"""The recipe as data: strict loading, composition, resolution, and where every value came from."""

from hf_peft_recipes.spec.compose import compose, kind_of, load_part
from hf_peft_recipes.spec.entries import Entry
from hf_peft_recipes.spec.resolve import Override, ResolvedRecipe, resolve
from hf_peft_recipes.spec.serialize import recipe_file, shown

__all__ = ["Entry", "Override", "ResolvedRecipe", "compose", "kind_of", "load_part", "recipe_file", "resolve", "shown"]
