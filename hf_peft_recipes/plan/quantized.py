"""Quantised layers on the meta device: bitsandbytes' by the sizes in its own code, which needs weights with content."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

from hf_peft_recipes import quantizers
from hf_peft_recipes.float8 import is_float8, stored_parts
from hf_peft_recipes.plan.job import Job
from hf_peft_recipes.spec.quantized import FLOAT8_TYPE, TORCHAO

DTYPES = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}
"""Bytes of an element to the dtype that stands for them."""


class _Product4Bit(torch.autograd.Function):
    """The sizes of bitsandbytes' product with a 4-bit weight: made whole for a moment, on both ways."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        ctx.sizes = (rows, columns)
        weight = torch.empty((rows, columns), dtype=x.dtype, device=x.device)
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return gradient @ torch.empty(ctx.sizes, dtype=gradient.dtype, device=gradient.device), None, None


class _Product8Bit(torch.autograd.Function):
    """The sizes of bitsandbytes' product with a weight in 8 bits, whose input is an attribute of the context."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, rows: int, columns: int, on_gpu: bool) -> torch.Tensor:
        ctx.sizes, ctx.x = (rows, columns), x
        if not on_gpu:
            return x @ torch.empty((rows, columns), dtype=x.dtype, device=x.device).T
        half = torch.empty_like(x, dtype=torch.float16)
        whole = torch.empty_like(half, dtype=torch.int8)
        del half
        products = torch.empty((*x.shape[:-1], rows), dtype=torch.int32, device=x.device)
        out = torch.empty_like(products, dtype=x.dtype)
        del whole
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        gradient = gradient.to(ctx.x.dtype)
        made = gradient @ torch.empty(ctx.sizes, dtype=ctx.x.dtype, device=gradient.device)
        return made, None, None, None


def quantize_layers(model: Any, job: Job) -> None:
    """Put quantised layers in place of the linear ones, but for the head, as transformers does.

    Args:
        model: on the meta device.
        job: with 4 or 8 bits.

    Raises:
        UserError: what quantises is not installed.
    """
    if job.float8:
        _quantize_to_floats(model)
        return
    from transformers.quantizers.quantizers_utils import get_module_from_name

    head, make = model.get_output_embeddings(), {4: _layer_4bit, 8: _layer_8bit}[job.bits]
    for name, module in [*model.named_modules()]:
        if not isinstance(module, torch.nn.Linear) or module is head:
            continue
        layer = make(module, job)
        layer.bias = module.bias
        layer.original_shape = (module.out_features, module.in_features)
        layer.forward = _forward_quantized(layer, job)
        parent, child = get_module_from_name(model, name)
        setattr(parent, child, layer)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    setattr(model, f"is_loaded_in_{job.bits}bit", True)


def _quantize_to_floats(model: Any) -> None:
    section = {"quant_method": TORCHAO, "quant_type": FLOAT8_TYPE}
    config, head = quantizers.make_config(section), model.get_output_embeddings()
    from torchao.quantization import Float8Tensor

    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            rows, columns = module.weight.shape
            scale = torch.empty((rows, 1), device="meta")
            numbers = torch.empty_like(module.weight, dtype=torch.float8_e4m3fn)
            weight = Float8Tensor(numbers, scale, [1, columns], dtype=module.weight.dtype)
            module.weight = torch.nn.Parameter(weight, requires_grad=False)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    # PEFT asks for it, to be able to merge.
    model.hf_quantizer = SimpleNamespace(quantization_config=config)
    quantizers.mend(model)


def _layer_4bit(module: torch.nn.Linear, job: Job) -> Any:
    import bitsandbytes as bnb

    with torch.device("meta"):
        layer = bnb.nn.Linear4bit(
            module.in_features, module.out_features, module.bias is not None,
            DTYPES[job.layer_bytes],
            job.double_quantized, "nf4",
        )  # fmt: skip
    packed = torch.empty((-(-module.weight.numel() // 2), 1), dtype=torch.uint8, device="meta")
    layer.weight = bnb.nn.Params4bit(packed, requires_grad=False, quant_type="nf4", bnb_quantized=True)
    layer.weight.quant_state = _quantization_state(module.weight.numel(), job.double_quantized)
    layer.weight.quant_state.shape, layer.weight.quant_state.dtype = module.weight.shape, torch.bfloat16
    return layer


def _layer_8bit(module: torch.nn.Linear, job: Job) -> Any:
    import bitsandbytes as bnb

    with torch.device("meta"):
        layer = bnb.nn.Linear8bitLt(
            module.in_features, module.out_features, module.bias is not None, has_fp16_weights=False
        )
        weight = torch.empty(module.weight.shape, dtype=torch.int8)
        layer.state.SCB = torch.empty(module.out_features, dtype=torch.float32)
    layer.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    return layer


def _forward_quantized(layer: Any, job: Job) -> Any:
    def forward(x: torch.Tensor) -> torch.Tensor:
        before = x.dtype
        if job.bits == 8:
            out = _Product8Bit.apply(x, *layer.original_shape, job.device.kind == "cuda")
            return out if layer.bias is None else out.add_(layer.bias)
        x = x.to(DTYPES[job.layer_bytes])
        out = _Product4Bit.apply(x, *layer.original_shape)
        out = out if layer.bias is None else out + layer.bias.to(out.dtype)
        return out.to(before)

    return forward


def _quantization_state(elements: int, double: bool) -> Any:
    from bitsandbytes.functional import QuantState

    def empty(count: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(count, dtype=dtype, device="meta")

    blocks = -(-elements // 64)
    code = empty(16, torch.float32)
    if not double:
        return QuantState(absmax=empty(blocks, torch.float32), code=code, blocksize=64, quant_type="nf4")
    nested = QuantState(absmax=empty(-(-blocks // 256), torch.float32), code=empty(256, torch.float32), blocksize=256)
    nested.dtype = torch.float32
    return QuantState(
        absmax=empty(blocks, torch.uint8), code=code, blocksize=64, quant_type="nf4", offset=empty(1, torch.float32),
        state2=nested,
    )  # fmt: skip


def quantization_tensors(model: Any) -> Iterator[torch.Tensor]:
    """Yield what quantised weights bring along beside themselves; of those in 8-bit floats, all that they are.

    Args:
        model: as `quantize_layers` left it.
    """
    for module in model.modules():
        if (rows := getattr(getattr(module, "state", None), "SCB", None)) is not None:
            yield rows
    for parameter in model.parameters():
        if is_float8(parameter):
            yield from stored_parts(parameter)
        state = getattr(parameter, "quant_state", None)
        for holder in (state, getattr(state, "state2", None)):
            for tensor in (
                getattr(holder, "absmax", None),
                getattr(holder, "code", None),
                getattr(holder, "offset", None),
            ):
                if tensor is not None:
                    yield tensor
