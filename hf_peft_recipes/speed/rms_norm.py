"""RMSNorm with a frozen weight as one function of autograd (Zhang & Sennrich 2019, arXiv:1910.07467).

Written out in torch it keeps x in float32, x normed in float32 and in the model's precision. Here x is kept as it came,
and one number a token.
"""

from __future__ import annotations

import inspect
from types import MethodType
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from hf_peft_recipes.speed.lora_linear import DTYPES

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


def install(model: Any) -> bool:
    """Let each norm whose weight is frozen be one function; return whether there is any."""
    found = [module for module in model.modules() if _is_meant(module)]
    for norm in found:
        norm.forward = MethodType(_forward, norm)
    return bool(found)


def _forward(norm: Any, x: torch.Tensor) -> Any:
    # What is evaluated or generated comes from transformers' code.
    if not torch.is_grad_enabled() or x.dtype not in DTYPES or norm.weight.dtype != x.dtype:
        return type(norm).forward(norm, x)
    return RmsNorm.apply(x, norm.weight, norm.variance_epsilon)


def _is_meant(module: Any) -> bool:
    weight = getattr(module, "weight", None)
    if weight is None or weight.requires_grad or not hasattr(module, "variance_epsilon") or "forward" in vars(module):
        return False
    source = inspect.getsource(type(module).forward)
    return all(line in source for line in _CODE)
