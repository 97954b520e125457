"""Causal attention among the tokens of each document, by torch's kernels.

On a CPU the way back of short documents is made in float32 from what is kept in bfloat16: torch's kernel spends more on
arranging small blocks for bfloat16 products than these save. It is closer to the truth, too.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

_FORTH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_BACK = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
LONGEST = 384
"""Tokens of a document up to which float32 is the faster way back. On two cores with bfloat16 products, 9 heads of 64,
about 1,024 tokens, milliseconds in bfloat16 and in float32: documents of 32 tokens 10.0 and 3.6, of 128 13.4 and 7.3,
of 256 12.4 and 11.0, of 384 19.7 and 18.8, of 512 21.3 and 26.2."""


def attend_causally(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float, scaling: float | None
) -> torch.Tensor:
    """Return the output, shaped as `query`.

    Args:
        query: of shape (documents, heads, tokens, size of a head).
        key: of shape (documents, key heads, tokens, size of a head).
        value: as `key`.
        dropout: of the attention weights.
        scaling: of the products; None takes 1 / √(size of a head).
    """
    short = query.device.type == "cpu" and query.dtype == torch.bfloat16 and query.shape[2] <= LONGEST
    if short and not dropout and query.dtype == key.dtype == value.dtype:
        return _Short.apply(query, key, value, scaling)
    return scaled_dot_product_attention(
        query, key, value, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )


class _Short(torch.autograd.Function):
    """Attention in bfloat16, its gradient in float32."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
    ) -> torch.Tensor:
        """Return the output."""
        out, log_sums = _FORTH(query, key, value, 0.0, True, scale=scaling)
        ctx.save_for_backward(query, key, value, out, log_sums)
        ctx.scaling = scaling
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        """Return the gradients by query, key and value."""
        query, key, value, out, log_sums = ctx.saved_tensors
        precise = (x.float() for x in (gradient, query, key, value, out))
        found = _BACK(*precise, log_sums, 0.0, True, scale=ctx.scaling)
        return *(x.to(query.dtype) for x in found), None
