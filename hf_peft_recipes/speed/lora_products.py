"""The products of linear layers with LoRA, forth and back by hand, in one precision; autograd sees none of them.

Written out, with a frozen W, `y = x·Wᵀ + s·(x·Aᵀ)·Bᵀ` (Hu et al. 2021, arXiv:2106.09685). Of layers that read one input
the A are one matrix: its product is one, and so is what comes back to the input through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from hf_peft_recipes.float8 import is_float8, whole
from hf_peft_recipes.speed.lora_layers import Projection, product_dtype
from hf_peft_recipes.speed.nf4 import dequantize

Tensors = Sequence[torch.Tensor]


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

    def forth(self, x: torch.Tensor, inner: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Return the output, of shape (tokens, outputs).

        Args:
            x: of shape (tokens, inputs), in this dtype.
            inner: what the adapter's A makes of its input, of shape (tokens, rank).
            b: of shape (outputs, rank).
        """
        bias: Any = self.base.bias
        weight = self.weight().t()
        out = torch.mm(x, weight) if bias is None else torch.addmm(bias.to(self.dtype), x, weight)
        return out.addmm_(inner, (b * self.scaling).to(self.dtype).t())

    def back(self, gradient: torch.Tensor, inner: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradients by B and by `inner`.

        Args:
            gradient: by the output, of shape (tokens, outputs), in this dtype.
            inner: as in `forth`.
            b: of shape (outputs, rank).
        """
        by_inner = torch.mm(gradient, (b * self.scaling).to(self.dtype))
        # Twice as fast as the other way round, where the result is tall.
        by_b = torch.mm(inner.t(), gradient).t().to(b.dtype).mul_(self.scaling)
        return by_b, by_inner


Ways = Sequence[Way]
"""Layers that read one input: what their adapters' A make of it is one product, as is what comes back to it."""


def ways_of(parts: Sequence[Projection], x: torch.Tensor) -> Ways:
    """Return the frozen parts of layers that read an input."""
    return [Way(part.base, part.scaling, product_dtype(part.base, x)) for part in parts]


def forth(
    ways: Ways, x: torch.Tensor, read: torch.Tensor, adapters: Tensors
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return the layers' outputs, and what all A make of their input, of shape (tokens, ranks).

    Args:
        ways: the frozen part of each.
        x: of shape (tokens, inputs), in their dtype.
        read: what the adapters read, `x` where nothing is dropped.
        adapters: A, of shape (rank, inputs), and B, of shape (outputs, rank), of each.
    """
    inner = torch.mm(read, _joined(adapters[::2], ways[0].dtype).t())
    parts = inner.split(_ranks(adapters), 1)
    return [way.forth(x, *given) for way, *given in zip(ways, parts, adapters[1::2], strict=True)], inner


def back(
    ways: Ways, gradients: Tensors, read: torch.Tensor, inner: torch.Tensor, adapters: Tensors
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return the gradients by A and B of each layer, and that by `inner`.

    Args:
        ways: the frozen part of each.
        gradients: by each output, of shape (tokens, outputs), in their dtype.
        read: as in `forth`.
        inner: as `forth` returns it.
        adapters: as in `forth`.
    """
    parts = inner.split(_ranks(adapters), 1)
    made = [way.back(*given) for way, *given in zip(ways, gradients, parts, adapters[1::2], strict=True)]
    by_inner = made[0][1] if len(ways) == 1 else torch.cat([part for _, part in made], 1)
    by_all_a = torch.mm(by_inner.t(), read).split(_ranks(adapters))
    by_adapters = [(by_a.to(a.dtype), by_b) for by_a, a, (by_b, _) in zip(by_all_a, adapters[::2], made, strict=True)]
    return [gradient for pair in by_adapters for gradient in pair], by_inner


def by_input(ways: Ways, gradients: Tensors, by_inner: torch.Tensor, adapters: Tensors) -> torch.Tensor:
    """Return the gradient by the input, of shape (tokens, inputs); for the arguments see `back`."""
    into = torch.mm(gradients[0], ways[0].weight())
    for way, gradient in zip(ways[1:], gradients[1:], strict=True):
        into.addmm_(gradient, way.weight())
    return into.addmm_(by_inner, _joined(adapters[::2], ways[0].dtype))


def _joined(parts: Tensors, dtype: torch.dtype) -> torch.Tensor:
    return parts[0].to(dtype) if len(parts) == 1 else torch.cat([part.to(dtype) for part in parts])


def _ranks(adapters: Tensors) -> list[int]:
    return [len(a) for a in adapters[::2]]


def flat(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor of shape (tokens, width) in a dtype: itself, seen otherwise, where it has that already."""
    return x.reshape(-1, x.shape[-1]).to(dtype)
