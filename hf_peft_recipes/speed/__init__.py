"""Faster paths through a model that is ready to train, each exact to rounding; `speed: off` leaves it as it is."""

from importlib import import_module
from typing import Any

PATHS = {
    "document_attention": ("hf_peft_recipes.speed.attention", ("cpu",)),
    "loss_head": ("hf_peft_recipes.speed.loss_head", ("cpu",)),
    # The block takes what its layers would do; where it cannot, they do it, each alone.
    "lora_linear": ("hf_peft_recipes.speed.lora_linear", ("cpu",)),
    "gated_mlp": ("hf_peft_recipes.speed.gated_mlp", ("cpu",)),
    "rms_norm": ("hf_peft_recipes.speed.rms_norm", ("cpu",)),
    "rotary": ("hf_peft_recipes.speed.rotary", ("cpu",)),
}
"""Path to its module, and the kinds of device that it serves."""


def speed_up(model: Any, device_kind: str) -> list[str]:
    """Return the names of the paths that the model takes from now on.

    Args:
        model: ready to train, its adapter in place.
        device_kind: `cpu`, `cuda` or `mps`.
    """
    return [
        name for name, (module, kinds) in PATHS.items() if device_kind in kinds and import_module(module).install(model)
    ]
