"""RMSNorm with a frozen weight as one function of autograd (Zhang & Sennrich 2019, arXiv:1910.07467).

Written out in torch it keeps x in float32, x normed in float32 and in the model's precision. Here x is kept as it came,
and one number a token.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from hf_peft_recipes.speed import Taken, sort_out
from hf_peft_recipes.speed.lora_layers import DTYPES
from hf_peft_recipes.speed.modules import is_replaced, is_written

_CODE = (
    "variance = hidden_states.pow(2).mean(-1, keepdim=True)",
    "hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)",
    "return self.weight * hidden_states.to(input_dtype)",
)
"""What tells the norms that are meant here, in transformers' words: Llama's, Mistral's, Qwen's, not Gemma's."""


class RmsNorm(torch.autograd.Function):
    """`x / √(mean(x²) + ε) · weight`, in float32 within, rounded once."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """Return the output, of the input's shape and dtype.

        Args:
            ctx: what backward finds again.
            x: of shape (…, width).
            weight: of shape (width,), frozen.
            epsilon: added to the mean of the squares.
        """
        precise = torch.promote_types(x.dtype, torch.float32)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=precise)
        scale = length.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        # Both sides of a product are of one dtype: between two of them torch is ten times slower on a CPU.
        return (x.to(precise) * scale).mul_(weight.to(precise)).to(x.dtype)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Return the gradient by the input: with g = gradient · weight, `s·g - s³·x·mean(g·x)`."""
        x, weight, scale = ctx.saved_tensors
        weighted, precise = gradient.to(scale.dtype) * weight.to(scale.dtype), x.to(scale.dtype)
        along = (weighted * precise).sum(-1, keepdim=True).mul_(scale.square()).div_(-x.shape[-1])
        return weighted.addcmul_(precise, along).mul_(scale).to(x.dtype), None, None


def install(model: Any) -> Taken:
    """Let each norm whose weight is frozen be one function."""
    norms = {module: _why_not(module) for module in model.modules() if type(module).__name__.endswith("RMSNorm")}
    for norm, reason in norms.items():
        if reason is None:
            norm.forward = MethodType(_forward, norm)
    return sort_out(norms.values())


def _forward(norm: Any, x: torch.Tensor) -> Any:
    # What is evaluated or generated comes from transformers' code.
    if not torch.is_grad_enabled() or x.dtype not in DTYPES or norm.weight.dtype != x.dtype:
        return type(norm).forward(norm, x)
    return RmsNorm.apply(x, norm.weight, norm.variance_epsilon)


def _why_not(norm: Any) -> str | None:
    weight = getattr(norm, "weight", None)
    if is_replaced(norm):
        return "another's function stands in the norm's place"
    if weight is None or not hasattr(norm, "variance_epsilon") or not is_written(type(norm).forward, _CODE):
        return f"{type(norm).__name__} is another norm"
    return "the norm learns" if weight.requires_grad else None
