"""The kernel that makes double-quantised NF4 whole in one pass. Importing it needs Triton."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

BLOCKS = 32
"""Quantised blocks that one program makes whole: 2,048 values where a block has 64."""
_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit  # type: ignore[untyped-decorator]
def _dequantize(
    packed_ptr: Any, scale_ptr: Any, table_ptr: Any, outer_ptr: Any, code_ptr: Any, offset_ptr: Any, out_ptr: Any,
    blocks: Any, size: Any, HALF_BLOCK: tl.constexpr, NESTED: tl.constexpr, BLOCKS: tl.constexpr,
    ROUNDED: tl.constexpr,
) -> None:  # fmt: skip
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    is_block = block < blocks
    # The scale of each block: 8 bits that a table makes a number of, times the scale of its 256.
    code = tl.load(scale_ptr + block, mask=is_block, other=0).to(tl.int32)
    outer = tl.load(outer_ptr + block // NESTED, mask=is_block, other=0.0)
    scale = tl.load(code_ptr + code) * outer + tl.load(offset_ptr)
    place = block[:, None] * HALF_BLOCK + tl.arange(0, HALF_BLOCK)[None, :]
    packed = tl.load(packed_ptr + place, mask=place < size, other=0).to(tl.int32)
    upper = tl.load(table_ptr + (packed >> 4)) * scale[:, None]
    lower = tl.load(table_ptr + (packed & 15)) * scale[:, None]
    values = tl.interleave(upper.to(ROUNDED), lower.to(ROUNDED))
    places = block[:, None] * (2 * HALF_BLOCK) + tl.arange(0, 2 * HALF_BLOCK)[None, :]
    tl.store(out_ptr + places, values.to(out_ptr.dtype.element_ty), mask=places < 2 * size)


def launch(
    packed: torch.Tensor, scales: torch.Tensor, table: torch.Tensor, outer: torch.Tensor, code: torch.Tensor,
    offset: torch.Tensor, out: torch.Tensor, blocksize: int, nested: int, rounded: torch.dtype,
) -> None:  # fmt: skip
    """Fill `out` with a weight.

    Args:
        packed: two values a byte.
        scales: a byte a block.
        table: the 16 values of four bits.
        outer: a scale for every `nested` blocks.
        code: the 256 values of a scale's byte.
        offset: of the scales, one number.
        out: contiguous, twice as many values as `packed` has bytes.
        blocksize: values that share a scale.
        nested: blocks that share an outer scale.
        rounded: dtype that values are rounded to before they take that of `out`.
    """
    blocks, half = scales.numel(), blocksize // 2
    # A product and a sum made one would round once less than bitsandbytes does.
    options: Any = {"enable_fp_fusion": False}
    # Triton launches where the current device is.
    with torch.cuda.device_of(packed):
        _dequantize[(triton.cdiv(blocks, BLOCKS),)](
            packed, scales, table, outer, code, offset, out, blocks, packed.numel(),
            HALF_BLOCK=half, NESTED=nested, BLOCKS=BLOCKS, ROUNDED=_DTYPES[rounded], **options,
        )  # fmt: skip
