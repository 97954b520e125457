"""Rotary positions as one function of autograd (Su et al. 2021, arXiv:2104.09864).

Written out in torch, queries and keys are turned in two copies of halves, two products and a sum, and as many on the
way back. Here it is a product, and two halves added to it in place.
"""

from __future__ import annotations

import inspect
from types import FunctionType, MethodType
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from hf_peft_recipes.speed.lora_linear import DTYPES

_NAME = "apply_rotary_pos_emb"
_CODE = {
    _NAME: ("q_embed = (q * cos) + (rotate_half(q) * sin)", "k_embed = (k * cos) + (rotate_half(k) * sin)"),
    "rotate_half": ("x1 = x[..., : x.shape[-1] // 2]", "return torch.cat((-x2, x1), dim=-1)"),
}
"""What tells the functions that are meant here, in transformers' words; others turn a part of a head, or neighbours."""
_TAKEN = ("q", "k", "cos", "sin", "unsqueeze_dim")


class Rotary(torch.autograd.Function):
    """`x·cos + rotate_half(x)·sin`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Return the output, of the input's shape and strides.

        Args:
            ctx: what backward finds again.
            x: of shape (rows, heads, tokens, size of a head).
            cos: of a shape that broadcasts to it, as `sin`; neither learns.
            sin: see `cos`.
        """
        ctx.save_for_backward(cos, sin)
        first, second = sin.chunk(2, -1)
        return _turned(x, cos, -first, second)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Return the gradient by the input: turned back."""
        cos, sin = ctx.saved_tensors
        first, second = sin.chunk(2, -1)
        return _turned(gradient, cos, second, -first), None, None


def _turned(x: torch.Tensor, cos: torch.Tensor, to_first: torch.Tensor, to_second: torch.Tensor) -> torch.Tensor:
    out = x * cos
    half = x.shape[-1] // 2
    out[..., :half].addcmul_(x[..., half:], to_first)
    out[..., half:].addcmul_(x[..., :half], to_second)
    return out


def install(model: Any) -> bool:
    """Let each attention layer turn its queries and keys by one function; return whether there is any."""
    found = [(module, function) for module in model.modules() if (function := _with_rotary(module)) is not None]
    for module, function in found:
        module.forward = MethodType(function, module)
    return bool(found)


def _with_rotary(module: Any) -> FunctionType | None:
    """Return the module's forward with our function in the place of the one that it calls by name; None if it cannot.

    The name is looked up in the globals of the model's file. Only this module gets others, and no model beside it.
    """
    forward = getattr(type(module), "forward", None)
    if not isinstance(forward, FunctionType) or _NAME not in forward.__code__.co_names or "forward" in vars(module):
        return None
    if not all(_is_written(forward.__globals__.get(name), lines) for name, lines in _CODE.items()):
        return None
    upstream = forward.__globals__[_NAME]
    if tuple(inspect.signature(upstream).parameters) != _TAKEN:
        return None

    def rotate(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1) -> Any:
        # What is evaluated or generated comes from transformers' code.
        alike = q.dtype == k.dtype == cos.dtype and q.dtype in DTYPES
        if not torch.is_grad_enabled() or not alike:
            return upstream(q, k, cos, sin, unsqueeze_dim)
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return Rotary.apply(q, cos, sin), Rotary.apply(k, cos, sin)

    made = FunctionType(
        forward.__code__, {**forward.__globals__, _NAME: rotate}, forward.__name__, forward.__defaults__,
        forward.__closure__,
    )  # fmt: skip
    made.__kwdefaults__ = forward.__kwdefaults__
    return made


def _is_written(function: Any, lines: tuple[str, ...]) -> bool:
    return function is not None and all(line in inspect.getsource(function) for line in lines)
