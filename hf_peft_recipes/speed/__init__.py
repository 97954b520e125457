"""Faster paths through a model that is ready to train, each exact to rounding; `speed: off` leaves it as it is."""

import logging
from importlib import import_module
from typing import Any

_logger = logging.getLogger(__name__)

PATHS = {
    "document_attention": ("hf_peft_recipes.speed.attention", ("cpu", "cuda")),
    "loss_head": ("hf_peft_recipes.speed.loss_head", ("cpu", "cuda")),
    # The block takes what its layers would do; where it cannot, they do it, each alone.
    "lora_linear": ("hf_peft_recipes.speed.lora_linear", ("cpu", "cuda")),
    "gated_mlp": ("hf_peft_recipes.speed.gated_mlp", ("cpu", "cuda")),
}
"""Path to its module, and the kinds of device that it serves."""
COMPILED = ("loss_head",)
"""Paths that stand outside what torch compiles: all others hand a model that is compiled back to its own code."""

ATTENTION = {("cuda", 2): "varlen"}
"""Kind of device and bytes of a number to what attends to packed documents there; elsewhere `by_document`."""

HEAD_TOKENS = {"cpu": 128}
"""Tokens whose logits the loss head makes at a time, by kind of device.

Measured on two cores with a vocabulary of 49,152: 64 reads the head too often, 512 no longer fits the caches.
"""
HEAD_TILE = 4096 * 32768
"""Logits that the loss head makes at a time elsewhere: as many as TRL's own head holds; no other number was tried."""


def speed_up(model: Any, device_kind: str, compiled: bool = False) -> list[str]:
    """Return the names of the paths that the model takes from now on.

    Args:
        model: ready to train, its adapter in place.
        device_kind: `cpu`, `cuda` or `mps`.
        compiled: whether torch compiles the model around them.
    """
    taken = [name for name in PATHS if serves(name, device_kind, compiled)]
    if compiled and (left := [name for name in PATHS if serves(name, device_kind) and name not in taken]):
        _logger.warning("torch.compile joins operations as they are, so that these paths are not taken: %s", left)
    return [name for name in taken if import_module(PATHS[name][0]).install(model)]


def serves(path: str, device_kind: str, compiled: bool = False) -> bool:
    """Return whether a path serves a kind of device.

    Args:
        path: of `PATHS`.
        device_kind: `cpu`, `cuda` or `mps`.
        compiled: whether torch compiles the model around it.
    """
    return device_kind in PATHS[path][1] and (not compiled or path in COMPILED)


def attention_kernel(device_kind: str, item_bytes: int) -> str:
    """Return what attends to packed documents: `varlen`, or `by_document`, which serves everywhere.

    Args:
        device_kind: `cpu`, `cuda` or `mps`.
        item_bytes: of a number of the queries.
    """
    return ATTENTION.get((device_kind, item_bytes), "by_document")


def head_tokens(device_kind: str, vocabulary: int) -> int:
    """Return of how many tokens the loss head makes the logits at a time.

    Args:
        device_kind: `cpu`, `cuda` or `mps`.
        vocabulary: of the head.
    """
    if device_kind in HEAD_TOKENS:
        return HEAD_TOKENS[device_kind]
    # Whole tiles of the kernels that multiply.
    return max(HEAD_TILE // vocabulary // 128 * 128, 128)
