"""Weights in four bits (NF4), made whole for a product: on a GPU in one buffer, by one kernel where Triton is there.

A weight is used by one product and then forgotten, so that the next one may take its place: products of one stream
come one after the other, and so do the kernels that fill the buffer. Each stream has a buffer of its own.
"""

from __future__ import annotations

import functools
import logging
from importlib.util import find_spec
from typing import Any

import torch

_logger = logging.getLogger(__name__)
NESTED_BLOCK = 256
"""Scales that share a scale of their own, of bitsandbytes' double quantisation."""

_buffers: dict[tuple[torch.device, int], torch.Tensor] = {}
"""Device and stream to the bytes that its weights are made in."""
_trusted: dict[Any, bool] = {}
"""Kind of weight to whether our kernel has made one of it as bitsandbytes does."""


def dequantize(weight: Any, state: Any, dtype: torch.dtype) -> torch.Tensor:
    """Return a weight whole, of shape (outputs, inputs), in a dtype; on a GPU it holds until the next is asked for.

    It is what bitsandbytes makes, to the bit: rounded to the dtype that the state names, then brought into the one
    that is asked for.

    Args:
        weight: of bitsandbytes' `Params4bit`, its bytes.
        state: its `QuantState`.
        dtype: of the product.
    """
    from bitsandbytes.functional import dequantize_4bit

    if weight.device.type != "cuda":
        # The kernel of a CPU makes its result itself.
        return dequantize_4bit(weight, state).view(state.shape).to(dtype)
    if has_kernel() and is_double_quantized(weight, state) and is_trusted(weight, state, dtype):
        return dequantize_double(weight, state, buffer(weight.device, state.shape, dtype))
    return (
        dequantize_4bit(weight, state, out=buffer(weight.device, state.shape, state.dtype)).view(state.shape).to(dtype)
    )


def buffer(device: torch.device, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """Return the room for one weight, which is that of every weight of the device's current stream.

    Args:
        device: a GPU.
        shape: of the weight.
        dtype: of the weight.
    """
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    key, size = (device, stream), shape.numel() * dtype.itemsize
    if key not in _buffers or len(_buffers[key]) < size:
        # The old one first, or both stand beside each other.
        _buffers.pop(key, None)
        _buffers[key] = torch.empty(size, device=device, dtype=torch.uint8)
    return _buffers[key][:size].view(dtype).view(shape)


def is_double_quantized(weight: Any, state: Any) -> bool:
    """Return whether a weight is of the kind that our kernel reads: NF4 whose scales are in 8 bits themselves."""
    nested = state.state2
    return (
        state.quant_type == "nf4"
        and nested is not None
        and nested.blocksize == NESTED_BLOCK
        and state.blocksize % 2 == 0
        and weight.dtype == state.absmax.dtype == torch.uint8
        and state.code.dtype == nested.code.dtype == nested.absmax.dtype == torch.float32
        and weight.is_contiguous()
        and state.shape.numel() % 2 == 0
    )


def is_trusted(weight: Any, state: Any, dtype: torch.dtype) -> bool:
    """Return whether our kernel makes such weights as bitsandbytes does: the first one of a process is made both ways.

    A GPU, a compiler or a version that the kernel was never tried on is then no risk: bitsandbytes goes on alone.

    Args:
        weight: as `is_double_quantized` has seen it.
        state: its `QuantState`.
        dtype: of the product.
    """
    from bitsandbytes.functional import dequantize_4bit

    kind = (weight.device, state.dtype, dtype, state.blocksize)
    if kind not in _trusted:
        expected = dequantize_4bit(weight, state).view(state.shape).to(dtype)
        try:
            equal, why = torch.equal(dequantize_double(weight, state, torch.empty_like(expected)), expected), "differs"
        except Exception as error:  # whatever a compiler may raise
            equal, why = False, f"{type(error).__name__}: {error}"
        if not equal:
            _logger.warning("weights in 4 bits are made whole by bitsandbytes, since our kernel cannot: %s", why)
        _trusted[kind] = equal
    return _trusted[kind]


def dequantize_double(weight: Any, state: Any, out: torch.Tensor) -> torch.Tensor:
    """Return `out`, filled with a double-quantised weight in one pass; bitsandbytes takes three.

    A value is `table[nibble] · (code[scale] · outer scale + offset)`, the upper four bits of a byte first (Dettmers
    et al. 2023, arXiv:2305.14314, section 3).

    Args:
        weight: its bytes, as `is_double_quantized` has seen them.
        state: bitsandbytes' `QuantState`.
        out: contiguous, of the weight's shape, in the dtype that is wanted.
    """
    from hf_peft_recipes.speed.nf4_kernel import launch

    nested = state.state2
    launch(
        weight, state.absmax, state.code, nested.absmax, nested.code, state.offset, out, state.blocksize,
        nested.blocksize, state.dtype,
    )  # fmt: skip
    return out


@functools.cache
def has_kernel() -> bool:
    """Return whether Triton is there to compile the kernel."""
    return find_spec("triton") is not None
