"""Fine-tuning recipes for Hugging Face models, picked by name.

Nothing heavy happens at import: the names below are fetched from their rooms when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_ROOMS = {
    "MergeResult": "hf_peft_recipes.api",
    "PushRequest": "hf_peft_recipes.hub.request",
    "Recipe": "hf_peft_recipes.api",
    "RunResult": "hf_peft_recipes.api",
    "SweepResult": "hf_peft_recipes.api",
    "certify": "hf_peft_recipes.api",
    "get_recipe": "hf_peft_recipes.api",
    "list_checkpoints": "hf_peft_recipes.api",
    "list_recipes": "hf_peft_recipes.api",
    "pull": "hf_peft_recipes.api",
    "register_recipe": "hf_peft_recipes.registry",
    "PreemptedError": "hf_peft_recipes.errors",
    "RecipeError": "hf_peft_recipes.errors",
    "UserError": "hf_peft_recipes.errors",
}

__all__ = [
    "MergeResult",
    "PreemptedError",
    "PushRequest",
    "Recipe",
    "RecipeError",
    "RunResult",
    "SweepResult",
    "UserError",
    "certify",
    "get_recipe",
    "list_checkpoints",
    "list_recipes",
    "pull",
    "register_recipe",
]

if TYPE_CHECKING:
    from hf_peft_recipes.api import (
        MergeResult,
        Recipe,
        RunResult,
        SweepResult,
        certify,
        get_recipe,
        list_checkpoints,
        list_recipes,
        pull,
    )
    from hf_peft_recipes.errors import PreemptedError, RecipeError, UserError
    from hf_peft_recipes.hub.request import PushRequest
    from hf_peft_recipes.registry import register_recipe


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_ROOMS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS})
