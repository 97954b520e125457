"""Attention over packed rows, document by document: no product over a dense mask that is mostly zero.

A packed row of documents comes with a block-diagonal mask. Within a block attention is plainly causal, which every
kernel knows without a mask. The mask itself stays the truth: what is not such a mask goes the usual way.

Documents of about the same length go into one call, a little space after the shorter ones: a causal query never sees
what comes after it. On two cores, eight documents of 128 tokens took 3.5 times as long on the way back one by one.
"""

from itertools import accumulate, groupby
from typing import Any, NamedTuple

import torch
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from hf_peft_recipes.speed.causal_attention import attend_causally

NAME = "sdpa_by_document"

# Every layer asks about the same mask; it is read once.
_layout_by_mask: Any = WeakIdKeyDictionary()
STEP = 32
"""Documents whose lengths come to the same multiple of it, in tokens, go into one call."""


class Layout(NamedTuple):
    """How the tokens of a row are laid out for the kernel, and back: documents beside one another, with space after."""

    groups: list[tuple[int, int]]
    """How many documents go into each call, and the tokens that each has room for."""
    take: torch.Tensor
    """The row's token that each place is filled with; any where it is left empty."""
    give: torch.Tensor
    """The place of each of the row's tokens."""
    empty: torch.Tensor
    """The places that are left empty."""


def lay_out(lengths: list[int], device: torch.device) -> Layout:
    """Return the layout of a row.

    Args:
        lengths: of its documents, in tokens.
        device: on which the row is.
    """
    starts = [0, *accumulate(lengths)]
    order = sorted(range(len(lengths)), key=lambda document: _room(lengths[document]))
    groups = [(len(list(some)), room) for room, some in groupby(_room(lengths[document]) for document in order)]
    take: list[int] = []
    give, empty, place = [0] * starts[-1], list[int](), 0
    for document in order:
        length, start, room = lengths[document], starts[document], _room(lengths[document])
        give[start : start + length] = range(place, place + length)
        empty += range(place + length, place + room)
        take += [*range(start, start + length), *[start] * (room - length)]
        place += room
    return Layout(groups, *(torch.tensor(one, dtype=torch.long, device=device) for one in (take, give, empty)))


def _room(length: int) -> int:
    return -(-length // STEP) * STEP


class _Spread(torch.autograd.Function):
    """From a row to the kernel's places; no gradient comes back from an empty one."""

    @staticmethod
    def forward(ctx: Any, row: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Return heads × places × size of a head, from 1 × heads × tokens × size of a head."""
        ctx.give = layout.give
        return row[0].index_select(1, layout.take)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return the gradient by the row."""
        return gradient.index_select(1, ctx.give)[None], None


class _Gather(torch.autograd.Function):
    """From the kernel's places back to a row."""

    @staticmethod
    def forward(ctx: Any, places: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Return tokens × heads × size of a head, from places × heads × size of a head."""
        ctx.layout = layout
        return places.index_select(0, layout.give)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return the gradient by the places, zero for empty ones."""
        return gradient.index_select(0, ctx.layout.take).index_fill_(0, ctx.layout.empty, 0), None


def install(model: Any) -> bool:
    """Let the model attend a document at a time; return whether it does, which only a model on SDPA can."""
    if model.config._attn_implementation != "sdpa" or not model._can_set_attn_implementation():
        return False
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    return bool(model.config._attn_implementation == NAME)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Return the attention's output, of shape (1, tokens, heads, size of a head), and no weights.

    Args:
        module: the attention layer.
        query: of shape (1, heads, tokens, size of a head).
        key: of shape (1, key heads, tokens, size of a head).
        value: as `key`.
        attention_mask: boolean, of shape (1, 1, tokens, tokens); any other mask goes to transformers' own function.
        dropout: of the attention weights.
        scaling: of the products; None takes 1 / √(size of a head).
        others: what transformers passes to every attention function.
    """
    layout = None
    if attention_mask is not None and others.get("position_bias") is None:
        layout = _layout(attention_mask)
    if layout is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
    if len(layout.groups) == layout.groups[0][0] == 1:
        return attend_causally(query, key, value, dropout, scaling).transpose(1, 2), None
    sizes = [number * room for number, room in layout.groups]
    spread = (_Spread.apply(one, layout).split(sizes, 1) for one in (query, key, value))
    outputs = []
    for (number, room), *parts in zip(layout.groups, *spread, strict=True):
        q, k, v = (part.unflatten(1, (number, room)).transpose(0, 1) for part in parts)
        outputs.append(attend_causally(q, k, v, dropout, scaling).transpose(1, 2).flatten(0, 1))
    return _Gather.apply(torch.cat(outputs), layout)[None], None


def document_lengths(mask: torch.Tensor) -> list[int] | None:
    """Return the lengths in tokens of the documents that a mask keeps apart; None unless each is plainly causal.

    Args:
        mask: of shape (rows, 1, queries, keys).
    """
    if mask.dtype != torch.bool or mask.shape[:2] != (1, 1) or mask.shape[2] != mask.shape[3]:
        return None
    seen = mask[0, 0]
    # The first key that a query sees is where its document starts.
    starts = seen.to(torch.uint8).argmax(-1)
    positions = torch.arange(len(seen), device=mask.device)
    causal = (positions >= starts[:, None]) & (positions <= positions[:, None])
    # A sliding window is such a mask too, but there the first key that a query sees, sees further back itself.
    documents = torch.equal(starts[starts], starts) and bool((starts.diff() >= 0).all())
    if not documents or not torch.equal(seen, causal):
        return None
    lengths: list[int] = torch.unique_consecutive(starts, return_counts=True)[1].tolist()
    return lengths


def _layout(mask: torch.Tensor) -> Layout | None:
    if mask not in _layout_by_mask:
        lengths = document_lengths(mask)
        _layout_by_mask[mask] = None if lengths is None else lay_out(lengths, mask.device)
    layout: Layout | None = _layout_by_mask[mask]
    return layout
