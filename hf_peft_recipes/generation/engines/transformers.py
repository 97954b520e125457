"""The model in this process, with its adapter unmerged."""

from collections.abc import Mapping
from typing import Any

from hf_peft_recipes.errors import UserError, did_you_mean
from hf_peft_recipes.generation.engines import Served
from hf_peft_recipes.generation.policy import TransformersPolicy

_OPTIONS = ("budget_bytes",)


def make(served: Served, options: Mapping[str, Any]) -> TransformersPolicy:
    """Return the policy.

    Args:
        served: a model in memory.
        options: `budget_bytes`, which a batch of answers may take.

    Raises:
        UserError: an unknown option.
    """
    for name in options:
        if name not in _OPTIONS:
            raise UserError(f"engine transformers: unknown option {name!r}{did_you_mean(name, _OPTIONS)}")
    return TransformersPolicy(served.model, served.renderer, served.stop_ids, bf16=served.bf16, **options)
