"""Weights in 8-bit floats, as torchao keeps them, and what its products should not do: keep them whole for later.

A weight is numbers in e4m3 with a float32 factor a row (Micikevicius et al. 2022, arXiv:2209.05433). It is made whole
for each product. torch's autograd would keep that copy of every layer until the way back has come to it, which is the
whole base again.
"""

from types import MethodType
from typing import Any

import torch
from torch.autograd.function import once_differentiable

KIND = "Float8Tensor"


class Product(torch.autograd.Function):
    """`x·Wᵀ` with a frozen W, made whole on each way and kept on neither."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: Any) -> torch.Tensor:
        """Return the product of shape (…, outputs).

        Args:
            ctx: what backward finds again.
            x: of shape (…, inputs).
            weight: of shape (outputs, inputs), in 8-bit floats.
        """
        ctx.weight, ctx.dtype = weight, x.dtype
        return torch.nn.functional.linear(x, whole(weight, weight.dtype))

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return the gradient by x, in its dtype."""
        return torch.matmul(gradient, whole(ctx.weight, gradient.dtype)).to(ctx.dtype), None


def is_float8(weight: Any) -> bool:
    """Return whether a weight is one of torchao's in 8-bit floats. Imports no torchao."""
    return type(weight).__name__ == KIND


def is_weight_only(weight: Any) -> bool:
    """Return whether a weight is in 8-bit floats whose product takes its input as it is, and does not round it too."""
    return is_float8(weight) and weight.act_quant_kwargs is None


def whole(weight: Any, dtype: torch.dtype) -> torch.Tensor:
    """Return a weight in 8-bit floats made whole: `weight.dequantize(dtype)` to the bit, of half the memory.

    Args:
        weight: of shape (outputs, inputs).
        dtype: in which it is wanted.
    """
    if weight.scale.shape[-1] != 1:
        # Of a base that others have quantised in blocks.
        return weight.dequantize(dtype)
    made: torch.Tensor = weight.qdata.to(torch.float32).mul_(weight.scale)
    return made.to(dtype)


def mend(model: Any) -> None:
    """Let no layer in 8-bit floats keep its whole weight for the way back.

    Args:
        model: quantised or not, loaded.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and is_weight_only(module.weight):
            # Bound to the layer, and so to a copy of it where the model is copied.
            module.forward = MethodType(_forward, module)


def _forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    out = Product.apply(x, layer.weight)
    return out if layer.bias is None else out + layer.bias.to(out.dtype)


def dequantize(model: Any) -> Any:
    """Return the model with its layers in 8-bit floats made whole, for which transformers 5.23 has no way of torchao's.

    Args:
        model: of transformers; it is changed.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and is_float8(module.weight):
            module.weight = torch.nn.Parameter(whole(module.weight, module.weight.dtype), requires_grad=False)
            vars(module).pop("forward", None)
            # torchao tells of its weight there.
            vars(module).pop("extra_repr", None)
    model.hf_quantizer.remove_quantization_config(model)
    return model


def stored_parts(tensor: Any) -> list[torch.Tensor]:
    """Return the plain tensors that a tensor is stored as: itself, or numbers and factors of one in 8-bit floats."""
    return [tensor.qdata, tensor.scale] if is_float8(tensor) else [tensor]
