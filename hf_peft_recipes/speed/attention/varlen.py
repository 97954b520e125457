"""Attention of packed documents by torch's kernel for sequences of different lengths (`torch.nn.attention.varlen`).

It came with torch 2.10, took `is_causal` there, and takes a window since 2.11; groups of heads have a switch since
2.12, and were what the kernel below does before.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch

WIDEST_HEAD = 256
"""Of flash attention, in numbers; a head is a multiple of 8 besides (`flash_api.cpp`)."""
CAPABILITY = 8
"""Of the GPU at least: Ampere."""


def can_attend_varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float, scaling: float | None
) -> bool:
    """Return whether the kernel serves these tensors.

    Args:
        query: of shape (tokens, heads, size of a head).
        key: of shape (tokens, key heads, size of a head).
        value: as `key`.
        dropout: of the attention weights, of which the kernel knows nothing.
        scaling: of the products; None takes 1 / √(size of a head).
    """
    size = query.shape[-1]
    fits = size == key.shape[-1] == value.shape[-1] and size <= WIDEST_HEAD and size % 8 == 0
    takes = _options()
    if not fits or dropout or not takes or not _has_kernel(query.device):
        return False
    return "scale" in takes or scaling is None or scaling == size**-0.5


def attend_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    longest: int,
    scaling: float | None,
) -> torch.Tensor:
    """Return the attention's output, of shape (tokens, heads, size of a head).

    Args:
        query: of shape (tokens, heads, size of a head), in half precision.
        key: of shape (tokens, key heads, size of a head).
        value: as `key`.
        bounds: where each document begins, and the end, of shape (documents + 1,), 32 bits.
        longest: tokens of the longest document.
        scaling: of the products; None takes 1 / √(size of a head).
    """
    from torch.nn.attention.varlen import varlen_attn

    takes = _options()
    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in takes else {"is_causal": True}
    if "scale" in takes:
        options["scale"] = scaling
    if "enable_gqa" in takes:
        options["enable_gqa"] = query.shape[1] != key.shape[1]
    out: torch.Tensor = varlen_attn(query, key, value, bounds, bounds, longest, longest, **options)
    return out


@functools.cache
def _options() -> frozenset[str]:
    """Return what torch's function can be told; nothing where there is none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return frozenset()
    return frozenset(inspect.signature(varlen_attn).parameters)


@functools.cache
def _has_kernel(device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    return torch.version.hip is None and torch.cuda.get_device_capability(device)[0] >= CAPABILITY
