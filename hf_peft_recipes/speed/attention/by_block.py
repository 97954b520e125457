"""Attention of packed documents on a CPU in bfloat16: forward by torch's kernel, back by products of our own.

Torch's kernel arranges small blocks anew for every product in bfloat16, which takes longer than the products. Here a
block of queries goes back in five products, for all heads and all documents of about one length at once. What is
subtracted before the exponential, the logarithm of its sum (FlashAttention: Dao et al. 2022, arXiv:2205.14135), rides
in the product as some more columns, so that it is taken away before the only rounding, and no score is held in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from hf_peft_recipes.speed import ATTENTION_COLUMNS as COLUMNS
from hf_peft_recipes.speed.attention.layout import Layout

_FORTH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def can_attend_by_block(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float) -> bool:
    """Return whether these tensors go this way.

    Args:
        query: of shape (tokens, heads, size of a head).
        key: of shape (tokens, key heads, size of a head).
        value: as `key`.
        dropout: of the attention weights.
    """
    return query.dtype == key.dtype == value.dtype == torch.bfloat16 and key.shape == value.shape and not dropout


def attend_by_block(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, scaling: float | None
) -> torch.Tensor:
    """Return the attention's output, of shape (tokens, heads, size of a head).

    Args:
        query: of shape (tokens, heads, size of a head).
        key: of shape (tokens, key heads, size of a head).
        value: as `key`.
        layout: of the documents.
        scaling: of the products; None takes 1 / √(size of a head).
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    out: torch.Tensor = ByBlock.apply(query, key, value, layout, scaling)
    return out


class ByBlock(torch.autograd.Function):
    """All documents of a batch."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, scaling: float
    ) -> torch.Tensor:
        """Return the output; arguments as in `attend_by_block`."""
        sizes = [number * room for number, room in layout.groups]
        rows = (one if layout.is_plain else one.index_select(0, layout.take) for one in (query, key, value))
        outs, sums = [], []
        for (number, room), *parts in zip(layout.groups, *(row.split(sizes) for row in rows), strict=True):
            q, k, v = (part.unflatten(0, (number, room)).transpose(1, 2) for part in parts)
            out, log_sums = _FORTH(q, k, v, 0.0, True, scale=scaling)
            outs.append(out.transpose(1, 2).flatten(0, 1))
            sums.append(log_sums.transpose(1, 2).flatten(0, 1))
        gathered, log_sums = (
            one[0] if layout.is_plain else torch.cat(one).index_select(0, layout.give) for one in (outs, sums)
        )
        ctx.save_for_backward(query, key, value, gathered, log_sums)
        ctx.layout, ctx.scaling = layout, scaling
        return gathered

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        """Return the gradients by query, key and value."""
        query, key, value, out, log_sums = ctx.saved_tensors
        return *attend_back(gradient, query, key, value, out, log_sums, ctx.layout, ctx.scaling), None, None


def attend_back(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    log_sums: torch.Tensor,
    layout: Layout,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients by query, key and value.

    Args:
        gradient: by the output, of shape (tokens, heads, size of a head).
        query: of the same shape.
        key: of shape (tokens, key heads, size of a head).
        value: as `key`.
        out: the output, of `query`'s shape.
        log_sums: the logarithms of the sums of exponentials, of shape (tokens, heads), in at least float32.
        layout: of the documents.
        scaling: of the products.
    """
    size, width = query.shape[2], query.shape[2] + COLUMNS
    places = layout.places(query.shape[1], key.shape[1])
    # Both sides of a product are of one dtype: between two of them torch is ten times slower on a CPU.
    means = (gradient.to(log_sums.dtype) * out.to(log_sums.dtype)).sum(-1)
    asked, given = (
        places.lay_queries(_less(rows, less)) for rows, less in ((query, log_sums / scaling), (gradient, means))
    )
    keys, values = (places.lay_keys(_with_ones(one)) for one in (key, value))
    by_query = asked.new_empty(len(asked), size)
    by_key, by_value = (keys.new_empty(len(keys), size, dtype=log_sums.dtype) for _ in range(2))
    for block in places.blocks():
        q, g = (one[block.queries].view(block.heads, -1, width) for one in (asked, given))
        k, v = (one[block.keys].view(block.heads, -1, width)[:, : block.end] for one in (keys, values))
        weights = torch.baddbmm(q.new_empty(()), q, k.mT, beta=0, alpha=scaling).exp_()
        weights.unflatten(1, (-1, block.end - block.start))[..., block.start :].masked_fill_(block.later, 0)
        by_scores = torch.bmm(g, v.mT).mul_(weights)
        torch.bmm(by_scores, k[..., :size], out=by_query[block.queries].view(block.heads, -1, size))
        for total, first, second in ((by_value, weights, g), (by_key, by_scores, q)):
            part = torch.bmm(first.mT, second[..., :size])
            into = total[block.keys].view(block.heads, -1, size)[:, : block.end]
            # The last queries, which see all keys, come first.
            into.copy_(part) if block.is_first else into.add_(part)
        # The next block's are about as large.
        del weights, by_scores, first
    return (
        places.gather_queries(by_query).view(query.shape).mul_(scaling),
        places.gather_keys(by_key).mul_(scaling).to(key.dtype).view(key.shape),
        places.gather_keys(by_value).to(value.dtype).view(value.shape),
    )


def _less(rows: torch.Tensor, subtracted: torch.Tensor) -> torch.Tensor:
    """Return rows whose products with `_with_ones` are less by what is subtracted."""
    parts, rest = [], -subtracted
    for _ in range(COLUMNS):
        parts.append(rest.to(rows.dtype))
        rest = rest - parts[-1]
    return torch.cat([rows, torch.stack(parts, -1)], -1)


def _with_ones(rows: torch.Tensor) -> torch.Tensor:
    return torch.cat([rows, rows.new_ones(1, 1, COLUMNS).expand(*rows.shape[:-1], COLUMNS)], -1)
