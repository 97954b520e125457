"""Faster paths through a model that is ready to train, each exact to rounding; `speed: off` leaves it as it is."""

import logging
from importlib import import_module
from typing import Any, NamedTuple

_logger = logging.getLogger(__name__)


class Path(NamedTuple):
    """One faster path."""

    module: str
    """Its `install(model) -> bool` says whether the model takes it."""
    kinds: tuple[str, ...] = ("cpu", "cuda")
    """The kinds of device that it serves."""
    of_packed: bool = False
    """Whether it is for objectives that pack rows alone."""
    of_compiled: bool = False
    """Whether it stands outside what torch compiles: all others hand a compiled model back to its own code."""


_ROOM = "hf_peft_recipes.speed"
PATHS = {
    "document_attention": Path(f"{_ROOM}.attention", of_packed=True),
    "loss_head": Path(f"{_ROOM}.loss_head", of_packed=True, of_compiled=True),
    # The block takes what its layers would do; where it cannot, they do it, each alone.
    "lora_linear": Path(f"{_ROOM}.lora_linear"),
    "gated_mlp": Path(f"{_ROOM}.gated_mlp"),
    "rms_norm": Path(f"{_ROOM}.rms_norm"),
    "rotary": Path(f"{_ROOM}.rotary"),
}
"""Every path by its name, in the order in which they are taken."""

ATTENTION = {("cuda", 2): "varlen"}
"""Kind of device and bytes of a number to what attends to packed documents there; elsewhere `by_document`."""

TILE, NARROWEST = 2**21, 256
"""Logits that the loss head makes at a time on a CPU, and the fewest of a token.

On two cores with a hidden size of 576, 470 and 940 tokens took least at about 2 million: half of it makes products
slow, twice as many no longer fit the caches.
"""
_ALIGNED = 64
"""Widths of tiles are multiples of it: the kernels of other products are made anew and slower."""
HEAD_TILE = 4096 * 32768
"""Logits that the loss head makes at a time elsewhere: as many as TRL's own head holds; no other number was tried."""


def speed_up(model: Any, device_kind: str, packs: bool = True, compiled: bool = False) -> list[str]:
    """Return the names of the paths that the model takes from now on.

    Args:
        model: ready to train, its adapter in place.
        device_kind: `cpu`, `cuda` or `mps`.
        packs: whether its rows are packed documents.
        compiled: whether torch compiles the model around them.
    """
    taken = [name for name, path in PATHS.items() if packs >= path.of_packed and serves(name, device_kind, compiled)]
    if compiled and (left := [name for name in PATHS if serves(name, device_kind) and name not in taken]):
        _logger.warning("torch.compile joins operations as they are, so that these paths are not taken: %s", left)
    return [name for name in taken if import_module(PATHS[name].module).install(model)]


def serves(path: str, device_kind: str, compiled: bool = False) -> bool:
    """Return whether a path serves a kind of device.

    Args:
        path: of `PATHS`; one that was taken out of it serves none.
        device_kind: `cpu`, `cuda` or `mps`.
        compiled: whether torch compiles the model around it.
    """
    known = PATHS.get(path)
    return known is not None and device_kind in known.kinds and (not compiled or known.of_compiled)


def attention_kernel(device_kind: str, item_bytes: int) -> str:
    """Return what attends to packed documents: `varlen`, or `by_document`, which serves everywhere.

    Args:
        device_kind: `cpu`, `cuda` or `mps`.
        item_bytes: of a number of the queries.
    """
    return ATTENTION.get((device_kind, item_bytes), "by_document")


def tile_width(tokens: int, vocabulary: int) -> int:
    """Return how many entries of the vocabulary the loss head reads at a time on a CPU, in tiles of about one width.

    Args:
        tokens: that carry loss.
        vocabulary: of the head.
    """
    tiles = -(-vocabulary // max(NARROWEST, TILE // max(1, tokens)))
    return -(-vocabulary // tiles // _ALIGNED) * _ALIGNED


def head_tokens(vocabulary: int) -> int:
    """Return of how many tokens the loss head makes the logits at a time on a GPU: whole tiles of its kernels.

    Args:
        vocabulary: of the head.
    """
    return max(HEAD_TILE // vocabulary // 128 * 128, 128)
