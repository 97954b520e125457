"""What a model writes: greedy, streamed, or drawn many times a prompt; and how likely it holds what was written."""

from hf_peft_recipes.generation.engines import ENGINES, Served, make_policy
from hf_peft_recipes.generation.greedy import generate, inference, stream

__all__ = ["ENGINES", "Served", "generate", "inference", "make_policy", "stream"]
