"""From the adapter of a finished run to a model that plain `transformers` loads."""

from hf_peft_recipes.merging.path import merge
from hf_peft_recipes.merging.request import MERGE_FILE, MergeRequest

__all__ = ["MERGE_FILE", "MergeRequest", "merge"]
