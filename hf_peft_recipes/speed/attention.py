"""Attention over packed rows, one document at a time: no product over a dense mask that is mostly zero.

A packed row of documents comes with a block-diagonal mask. Within a block attention is plainly causal, which every
kernel knows without a mask. The mask itself stays the truth: what is not such a mask goes the usual way.
"""

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_by_document"

# Every layer asks about the same mask; it is read once.
_lengths_by_mask: Any = WeakIdKeyDictionary()


def install(model: Any) -> bool:
    """Let the model attend a document at a time; return whether it does, which only a model on SDPA can."""
    if model.config._attn_implementation != "sdpa" or not model._can_set_attn_implementation():
        return False
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    return bool(model.config._attn_implementation == NAME)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Return the attention's output, of shape (1, tokens, heads, size of a head), and no weights.

    Args:
        module: the attention layer.
        query: of shape (1, heads, tokens, size of a head).
        key: of shape (1, key heads, tokens, size of a head).
        value: as `key`.
        attention_mask: boolean, of shape (1, 1, tokens, tokens); any other mask goes to transformers' own function.
        dropout: of the attention weights.
        scaling: of the products; None takes 1 / √(size of a head).
        others: what transformers passes to every attention function.
    """
    lengths = None
    if attention_mask is not None and others.get("position_bias") is None:
        lengths = _lengths(attention_mask)
    if lengths is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
    # Splitting has one backward; slicing would fill a row of zeros for every document.
    documents = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    grouped = query.shape[1] != key.shape[1]
    outputs = [
        scaled_dot_product_attention(*qkv, dropout_p=dropout, scale=scaling, is_causal=True, enable_gqa=grouped)
        for qkv in documents
    ]
    return torch.cat([output.transpose(1, 2) for output in outputs], 1), None


def document_lengths(mask: torch.Tensor) -> list[int] | None:
    """Return the lengths in tokens of the documents that a mask keeps apart; None unless each is plainly causal.

    Args:
        mask: of shape (rows, 1, queries, keys).
    """
    if mask.dtype != torch.bool or mask.shape[:2] != (1, 1) or mask.shape[2] != mask.shape[3]:
        return None
    seen = mask[0, 0]
    # The first key that a query sees is where its document starts.
    starts = seen.to(torch.uint8).argmax(-1)
    positions = torch.arange(len(seen), device=mask.device)
    causal = (positions >= starts[:, None]) & (positions <= positions[:, None])
    # A sliding window is such a mask too, but there the first key that a query sees, sees further back itself.
    documents = torch.equal(starts[starts], starts) and bool((starts.diff() >= 0).all())
    if not documents or not torch.equal(seen, causal):
        return None
    lengths: list[int] = torch.unique_consecutive(starts, return_counts=True)[1].tolist()
    return lengths


def _lengths(mask: torch.Tensor) -> list[int] | None:
    if mask not in _lengths_by_mask:
        _lengths_by_mask[mask] = document_lengths(mask)
    lengths: list[int] | None = _lengths_by_mask[mask]
    return lengths
