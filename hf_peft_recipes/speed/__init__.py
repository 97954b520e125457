"""Faster paths through a model that is ready to train, each exact to rounding; `speed: off` leaves it as it is."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, NamedTuple


class Path(NamedTuple):
    """One faster path."""

    module: str
    """Its `install(model) -> Taken` lets the model take it."""
    kinds: tuple[str, ...] = ("cpu", "cuda")
    """The kinds of device that it serves."""
    of_packed: bool = False
    """Whether it is for objectives that pack rows alone."""
    of_compiled: bool = False
    """Whether it stands outside what torch compiles: all others hand a compiled model back to its own code."""


@dataclass(frozen=True)
class Taken:
    """What a path has taken of a model; false where that is nothing."""

    parts: int
    """Layers, norms, blocks, or 1 for the whole model."""
    left: Counter[str] = field(default_factory=Counter)
    """Parts of its kind that are left to upstream's code, by the reason."""

    def __bool__(self) -> bool:
        return self.parts > 0


def sort_out(reasons: Iterable[str | None]) -> Taken:
    """Return what is taken of parts, each with the reason why it cannot be; None where it can."""
    counted = Counter(reasons)
    parts = counted.pop(None, 0)
    return Taken(parts, Counter({reason: count for reason, count in counted.items() if reason is not None}))


class Speed(NamedTuple):
    """The paths of a model."""

    paths: list[str]
    """Those that it takes, in part at least."""
    told: list[str]
    """What of their kind is left to upstream's code, and why, in a line; none where nothing is."""


_ROOM = "hf_peft_recipes.speed"
PATHS = {
    "document_attention": Path(f"{_ROOM}.attention", of_packed=True),
    "loss_head": Path(f"{_ROOM}.loss_head", of_packed=True, of_compiled=True),
    # The block takes what its layers would do; where it cannot, they do it, each alone.
    "lora_linear": Path(f"{_ROOM}.lora_linear"),
    "gated_mlp": Path(f"{_ROOM}.gated_mlp"),
    "rms_norm": Path(f"{_ROOM}.rms_norm"),
    "rotary": Path(f"{_ROOM}.rotary"),
    # Whatever attention does, it does after this.
    "qkv": Path(f"{_ROOM}.qkv"),
}
"""Every path by its name, in the order in which they are taken."""

ATTENTION = {("cuda", 2): "varlen", ("cpu", 2): "by_block"}
"""Kind of device and bytes of a number to what attends to packed documents there; elsewhere `by_document`."""

ATTENTION_BLOCK = 128
"""Queries whose attention goes back at a time `by_block`, each with the keys up to the last of them."""
ATTENTION_SCORES = 2**22
"""Scores of a block that are held at a time, by heads and documents: 8 MiB, and as much again for their gradient.

More where one head of keys alone has more, of a document beyond 32,768 tokens over the heads of queries that share it.
"""
ATTENTION_COLUMNS = 4
"""Numbers whose sum is what is subtracted there: three of bfloat16 hold what float32 has, a fourth keeps rows even."""

TILE, NARROWEST = 2**21, 256
"""Logits that the loss head makes at a time on a CPU, and the fewest of a token.

On two cores with a hidden size of 576, 470 and 940 tokens took least at about 2 million: half of it makes products
slow, twice as many no longer fit the caches.
"""
_ALIGNED = 64
"""Widths of tiles are multiples of it: the kernels of other products are made anew and slower."""
HEAD_TILE = 4096 * 32768
"""Logits that the loss head makes at a time elsewhere: as many as TRL's own head holds; no other number was tried."""


def speed_up(model: Any, device_kind: str, packs: bool = True, compiled: bool = False) -> Speed:
    """Let a model take what paths it can; return which, and what there is to tell.

    Args:
        model: ready to train, its adapter in place.
        device_kind: `cpu`, `cuda` or `mps`.
        packs: whether its rows are packed documents.
        compiled: whether torch compiles the model around them.
    """
    meant = [name for name, path in PATHS.items() if packs >= path.of_packed and serves(name, device_kind)]
    asked = [name for name in meant if serves(name, device_kind, compiled)]
    taken: dict[str, Taken] = {name: import_module(PATHS[name].module).install(model) for name in asked}
    left = [
        f"{name} for {count} of {of.parts + of.left.total()} ({reason})"
        for name, of in taken.items()
        for reason, count in of.left.items()
    ]
    left += [f"{name} (torch.compile joins operations as they are)" for name in meant if name not in asked]
    if meant and not left and not any(taken.values()):
        left = [f"all (none knows a {type(model).__name__})"]
    told = [f"Left to upstream's own code, of what is faster here: {', '.join(left)}"] if left else []
    return Speed([name for name, of in taken.items() if of], told)


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
    """Return what attends to packed documents: of `ATTENTION`, or `by_document`, which serves everywhere.

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
