"""Attention of packed documents by SDPA, documents of about the same length in one call: what serves everywhere."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from hf_peft_recipes.speed.attention.layout import Layout


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
    if layout.is_plain:
        return _attend(row_q, row_k, row_v, dropout, scaling)[0].transpose(0, 1)
    sizes = [number * room for number, room in layout.groups]
    spread = (_Spread.apply(row, layout).split(sizes, 1) for row in rows)
    outputs = []
    for (number, room), *parts in zip(layout.groups, *spread, strict=True):
        q, k, v = (part.unflatten(1, (number, room)).transpose(0, 1) for part in parts)
        outputs.append(_attend(q, k, v, dropout, scaling).transpose(1, 2).flatten(0, 1))
    gathered: torch.Tensor = _Gather.apply(torch.cat(outputs), layout)
    return gathered


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float, scaling: Any) -> torch.Tensor:
    return scaled_dot_product_attention(
        query, key, value, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )


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
