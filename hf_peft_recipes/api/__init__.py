"""What a Python user holds: recipes by name, and their runs."""

from hf_peft_recipes.api.matrix import capability_table
from hf_peft_recipes.api.recipes import Recipe
from hf_peft_recipes.api.runs import MergeResult, RunResult, certify, list_checkpoints, pull
from hf_peft_recipes.api.shelf import get_recipe, list_recipes, resolve_recipe
from hf_peft_recipes.api.tuning import SweepResult, sweep_folder

__all__ = [
    "MergeResult", "Recipe", "RunResult", "SweepResult", "capability_table", "certify", "get_recipe",
    "list_checkpoints", "list_recipes", "pull", "resolve_recipe", "sweep_folder",
]  # fmt: skip
