"""Attention of packed documents by SDPA, documents of about the same length in one call.

A little space stands after the shorter ones: a causal query never sees what comes after it. On two cores, eight
documents of 128 tokens took 3.5 times as long on the way back one by one.
"""

from __future__ import annotations

from itertools import accumulate, groupby
from typing import Any, NamedTuple

import torch

from hf_peft_recipes.speed.attention.causal import attend_causally

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


def attend_by_document(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, dropout: float, scaling: float | None
) -> torch.Tensor:
    """Return the attention's output, of shape (tokens, heads, size of a head).

    Args:
        query: of shape (tokens, heads, size of a head).
        key: of shape (tokens, key heads, size of a head).
        value: as `key`.
        layout: of the documents.
        dropout: of the attention weights.
        scaling: of the products; None takes 1 / √(size of a head).
    """
    if query.shape[1] != key.shape[1] and query.device.type != "cpu":
        # On a GPU only flash attention knows of groups, and it does not serve every dtype.
        key, value = (one.repeat_interleave(query.shape[1] // key.shape[1], 1) for one in (key, value))
    row_q, row_k, row_v = rows = [one.transpose(0, 1)[None] for one in (query, key, value)]
    if len(layout.groups) == layout.groups[0][0] == 1:
        return attend_causally(row_q, row_k, row_v, dropout, scaling)[0].transpose(0, 1)
    sizes = [number * room for number, room in layout.groups]
    spread = (_Spread.apply(row, layout).split(sizes, 1) for row in rows)
    outputs = []
    for (number, room), *parts in zip(layout.groups, *spread, strict=True):
        q, k, v = (part.unflatten(1, (number, room)).transpose(0, 1) for part in parts)
        outputs.append(attend_causally(q, k, v, dropout, scaling).transpose(1, 2).flatten(0, 1))
    gathered: torch.Tensor = _Gather.apply(torch.cat(outputs), layout)
    return gathered


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
