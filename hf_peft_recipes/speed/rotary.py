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

from hf_peft_recipes.speed import Taken, sort_out
from hf_peft_recipes.speed.lora_layers import DTYPES
from hf_peft_recipes.speed.modules import is_marked, is_written, mark

_PATH = "rotary"
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


def install(model: Any) -> Taken:
    """Let each attention layer turn its queries and keys by one function."""
    layers = {module: _why_not(module) for module in model.modules() if _rotates(module)}
    for layer, reason in layers.items():
        if reason is None and not is_marked(layer, _PATH):
            layer.forward = MethodType(mark(_with_rotary(type(layer).forward), _PATH), layer)
    return sort_out(layers.values())


def _rotates(module: Any) -> bool:
    forward = getattr(type(module), "forward", None)
    return isinstance(forward, FunctionType) and _NAME in forward.__code__.co_names


def _why_not(layer: Any) -> str | None:
    names = type(layer).forward.__globals__
    if is_marked(layer, _PATH):
        return None
    if "forward" in vars(layer):
        return "another's function stands in the layer's place"
    if not all(is_written(names.get(name), lines) for name, lines in _CODE.items()):
        return f"{type(layer).__name__} turns in another way"
    if tuple(inspect.signature(names[_NAME]).parameters) != _TAKEN:
        return f"{type(layer).__name__} turns by other arguments"
    return None


def _with_rotary(forward: FunctionType) -> FunctionType:
    """Return a layer's forward with our function in the place of the one that it calls by name.

    The name is looked up in the globals of the model's file. Only this layer gets others, and no model beside it.
    """
    upstream = forward.__globals__[_NAME]

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
    # So that other paths see whose it is.
    made.__module__ = __name__
    return made
