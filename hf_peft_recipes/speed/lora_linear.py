"""A linear layer with LoRA as one function of autograd: what the way back needs is kept, once, and nothing else.

PEFT makes a float32 copy of the input for the adapter, keeps it for the way back, and makes three tensors as large as
the output. Here the input is kept as it came, once for all layers that read it, and what the adapter adds is added in
place.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from hf_peft_recipes.speed import Taken, sort_out
from hf_peft_recipes.speed.lora_layers import Projection, as_base, is_lora, projection_of, why_not_plain
from hf_peft_recipes.speed.lora_products import Ways, back, by_input, flat, forth, ways_of

MADE = "_made_beforehand"
"""Of a layer: an input, and what the layer makes of it, made together with others' by whoever puts them there."""


class LoraLinear(torch.autograd.Function):
    """One layer, or several that read one input."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, dropped: torch.Tensor | None, ways: Ways, *adapters: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Return the output of each, of shape (…, outputs).

        Args:
            ctx: what backward finds again.
            x: of shape (…, inputs).
            dropped: `x` with some of it zeroed, for the adapters; None where nothing is.
            ways: the frozen part of each.
            adapters: A, of shape (rank, inputs), and B, of shape (outputs, rank), of each.
        """
        dtype = ways[0].dtype
        rows = flat(x, dtype)
        outs, inner = forth(ways, rows, rows if dropped is None else flat(dropped, dtype), adapters)
        # The input itself, whatever its dtype: who else reads it keeps it together with us.
        ctx.save_for_backward(x if dropped is None else dropped, inner, *adapters)
        ctx.ways, ctx.x, ctx.drops = ways, (x.shape, x.dtype), dropped is not None
        return tuple(out.view(*x.shape[:-1], -1) for out in outs)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        """Return the gradients by the input, by what the adapters read, by A and B of each."""
        (read, inner, *adapters), ways, (shape, dtype) = ctx.saved_tensors, ctx.ways, ctx.x
        given = [flat(gradient, ways[0].dtype) for gradient in gradients]
        by_adapters, by_inner = back(ways, given, flat(read, ways[0].dtype), inner, adapters)
        by_x = by_dropped = None
        if ctx.drops:
            if ctx.needs_input_grad[0]:
                by_x = torch.mm(given[0], ways[0].weight()).view(shape).to(dtype)
            if ctx.needs_input_grad[1]:
                by_dropped = torch.mm(by_inner, adapters[0].to(ways[0].dtype)).view(shape).to(dtype)
        elif ctx.needs_input_grad[0]:
            by_x = by_input(ways, given, by_inner, adapters).view(shape).to(dtype)
        return by_x, by_dropped, None, *by_adapters


def install(model: Any) -> Taken:
    """Let each plain LoRA layer over a frozen base be one function.

    DoRA and other variants, trained bases, biases of their own, quantisation of another kind than NF4 and 8-bit floats
    keep to PEFT's way; so does, at any moment, a layer whose adapter is merged or disabled, or one of several that are
    active.
    """
    layers = {module: why_not_plain(module) for module in model.modules() if is_lora(module)}
    for layer, reason in layers.items():
        if reason is None:
            # Bound to the layer, and so to a copy of it where the model is copied.
            layer.forward = MethodType(_forward, layer)
    return sort_out(layers.values())


def serves(layer: Any) -> bool:
    """Return whether `install` has made one function of the layer."""
    return getattr(vars(layer).get("forward"), "__func__", None) is _forward


def _forward(layer: Any, x: torch.Tensor, *others: Any, **named: Any) -> Any:
    if (made := vars(layer).pop(MADE, None)) is not None and made[0] is x:
        return made[1]
    projection = None if others or named else projection_of(layer, x)
    if projection is None:
        return type(layer).forward(layer, x, *others, **named)
    dropped = None if projection.dropout is None else projection.dropout(x)
    return together([projection], x, dropped)[0]


def together(parts: Sequence[Projection], x: torch.Tensor, dropped: torch.Tensor | None = None) -> list[torch.Tensor]:
    """Return the outputs of layers that read one input, as one function of autograd.

    Args:
        parts: the layers, whose products are of one dtype.
        x: their input, of shape (…, inputs).
        dropped: see `LoraLinear.forward`.
    """
    outs = LoraLinear.apply(x, dropped, ways_of(parts, x), *(tensor for part in parts for tensor in (part.a, part.b)))
    return [as_base(out, part.base, x) for out, part in zip(outs, parts, strict=True)]
