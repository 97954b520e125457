"""A linear layer with LoRA as one function of autograd: what the way back needs is kept, once, and nothing else.

Written out, with a frozen W, `y = x·Wᵀ + s·(x·Aᵀ)·Bᵀ` (Hu et al. 2021, arXiv:2106.09685). PEFT makes a float32 copy of
x for the adapter, keeps it for the way back, and makes three tensors as large as y. Here x is kept as it came, once for
all layers that read it, and what the adapter adds is added in place.
"""

from __future__ import annotations

from types import MethodType
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from hf_peft_recipes.float8 import is_float8, whole
from hf_peft_recipes.speed import Taken, sort_out
from hf_peft_recipes.speed.lora_layers import as_base, is_lora, product_dtype, projection_of, why_not_plain
from hf_peft_recipes.speed.nf4 import dequantize


class Way(NamedTuple):
    """What stays the same from a layer's way forward to its way back, tensors that autograd follows left out."""

    base: torch.nn.Module
    scaling: float
    dtype: torch.dtype
    """In which products are made."""

    def weight(self) -> torch.Tensor:
        """Return the base's weight, of shape (outputs, inputs); one in four bits holds until the next is asked for."""
        weight: Any = self.base.weight
        if is_float8(weight):
            return whole(weight, self.dtype)
        state = getattr(weight, "quant_state", None)
        return weight.to(self.dtype) if state is None else dequantize(weight, state, self.dtype)

    def forth(self, x: torch.Tensor, dropped: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> Any:
        """Return the output of shape (tokens, outputs), and the adapter's inner state of shape (tokens, rank).

        Args:
            x: of shape (tokens, inputs), in this dtype.
            dropped: what the adapter reads, `x` where nothing is dropped.
            a: of shape (rank, inputs).
            b: of shape (outputs, rank).
        """
        bias: Any = self.base.bias
        weight = self.weight().t()
        out = torch.mm(x, weight) if bias is None else torch.addmm(bias.to(self.dtype), x, weight)
        inner = torch.mm(dropped, a.to(self.dtype).t())
        return out.addmm_(inner, (b * self.scaling).to(self.dtype).t()), inner

    def back(
        self,
        gradient: torch.Tensor,
        dropped: torch.Tensor,
        inner: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the gradients by A and B, and that by `inner`, of shape (tokens, rank).

        Args:
            gradient: by the output, of shape (tokens, outputs), in this dtype.
            dropped: as in `forth`.
            inner: as `forth` returns it.
            a: of shape (rank, inputs).
            b: of shape (outputs, rank).
        """
        by_inner = torch.mm(gradient, (b * self.scaling).to(self.dtype))
        by_a = torch.mm(by_inner.t(), dropped).to(a.dtype)
        # Twice as fast as the other way round, where the result is tall.
        by_b = torch.mm(inner.t(), gradient).t().to(b.dtype).mul_(self.scaling)
        return by_a, by_b, by_inner

    def by_input(
        self, gradient: torch.Tensor, by_inner: torch.Tensor, a: torch.Tensor, into: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the gradient by the input, of shape (tokens, inputs), added to what is given where something is."""
        into = torch.mm(gradient, self.weight()) if into is None else into.addmm_(gradient, self.weight())
        return into.addmm_(by_inner, a.to(self.dtype))


class LoraLinear(torch.autograd.Function):
    """One layer."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, dropped: torch.Tensor | None, a: torch.Tensor, b: torch.Tensor, way: Way
    ) -> torch.Tensor:
        """Return the output of shape (…, outputs).

        Args:
            ctx: what backward finds again.
            x: of shape (…, inputs).
            dropped: `x` with some of it zeroed, for the adapter; None where nothing is.
            a: of shape (rank, inputs).
            b: of shape (outputs, rank).
            way: the frozen part.
        """
        rows = flat(x, way.dtype)
        some = rows if dropped is None else flat(dropped, way.dtype)
        out, inner = way.forth(rows, some, a, b)
        # The input itself, whatever its dtype: layers that read the same one keep it together.
        ctx.save_for_backward(x if dropped is None else dropped, inner, a, b)
        ctx.way, ctx.x, ctx.drops = way, (x.shape, x.dtype), dropped is not None
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        """Return the gradients by the input, by what the adapter read, by A and by B."""
        (read, inner, a, b), way, (shape, dtype) = ctx.saved_tensors, ctx.way, ctx.x
        g = flat(gradient, way.dtype)
        by_a, by_b, by_inner = way.back(g, flat(read, way.dtype), inner, a, b)
        by_x = by_dropped = None
        if ctx.drops:
            if ctx.needs_input_grad[0]:
                by_x = torch.mm(g, way.weight()).view(shape).to(dtype)
            if ctx.needs_input_grad[1]:
                by_dropped = torch.mm(by_inner, a.to(way.dtype)).view(shape).to(dtype)
        elif ctx.needs_input_grad[0]:
            by_x = way.by_input(g, by_inner, a).view(shape).to(dtype)
        return by_x, by_dropped, by_a, by_b, None


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


def _forward(layer: Any, x: torch.Tensor, *others: Any, **named: Any) -> Any:
    projection = None if others or named else projection_of(layer, x)
    if projection is None:
        return type(layer).forward(layer, x, *others, **named)
    dropped = None if projection.dropout is None else projection.dropout(x)
    way = Way(projection.base, projection.scaling, product_dtype(projection.base, x))
    return as_base(LoraLinear.apply(x, dropped, projection.a, projection.b, way), projection.base, x)


def flat(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor of shape (tokens, width) in a dtype: itself, seen otherwise, where it has that already."""
    return x.reshape(-1, x.shape[-1]).to(dtype)
