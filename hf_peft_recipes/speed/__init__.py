"""Faster paths through a model that is ready to train, each exact to rounding; `speed: off` leaves it as it is."""

from importlib import import_module
from typing import Any, NamedTuple


class Path(NamedTuple):
    """One faster path."""

    module: str
    """Its `install(model) -> bool` says whether the model takes it."""
    kinds: tuple[str, ...] = ("cpu",)
    """The kinds of device that it serves."""
    of_packed: bool = False
    """Whether it is for objectives that pack rows alone."""


_ROOM = "hf_peft_recipes.speed"
PATHS = {
    "document_attention": Path(f"{_ROOM}.attention", of_packed=True),
    "loss_head": Path(f"{_ROOM}.loss_head", of_packed=True),
    # The block takes what its layers would do; where it cannot, they do it, each alone.
    "lora_linear": Path(f"{_ROOM}.lora_linear"),
    "gated_mlp": Path(f"{_ROOM}.gated_mlp"),
    "rms_norm": Path(f"{_ROOM}.rms_norm"),
    "rotary": Path(f"{_ROOM}.rotary"),
}
"""Every path by its name, in the order in which they are taken."""


def speed_up(model: Any, device_kind: str, packs: bool = True) -> list[str]:
    """Return the names of the paths that the model takes from now on.

    Args:
        model: ready to train, its adapter in place.
        device_kind: `cpu`, `cuda` or `mps`.
        packs: whether its rows are packed documents.
    """
    return [
        name
        for name, path in PATHS.items()
        if device_kind in path.kinds and packs >= path.of_packed and import_module(path.module).install(model)
    ]
