"""Attention over packed rows, document by document: no product over a dense mask that is mostly zero, and no mask.

Within a document attention is plainly causal, which every kernel knows without a mask. So the layers are given the
bounds of the documents in the mask's place, where that is all that the mask says; any other mask goes the usual way.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from hf_peft_recipes.speed import Taken, attention_kernel, sort_out
from hf_peft_recipes.speed.attention.by_block import attend_by_block, can_attend_by_block
from hf_peft_recipes.speed.attention.by_document import attend_by_document
from hf_peft_recipes.speed.attention.documents import Documents, documents_of, read_lengths, write_bounds, write_mask
from hf_peft_recipes.speed.attention.varlen import attend_varlen, can_attend_varlen

NAME = "sdpa_by_document"

_LOOKED_INTO = re.compile(r"\b(?:attention|causal)_mask\s*(?:\[|\.|[-+*&|/])|[-+*&|/]\s*(?:attention|causal)_mask\b")
"""What code does with a mask that it does not only hand on."""
_LIBRARIES = ("builtins", "torch", "peft", "bitsandbytes", "liger_kernel")
"""Packages of layers and wrappers, none of which makes masks for layers below it."""
_OTHER_SCORES = ("position_bias", "softcap")
"""What changes scores beside the mask, in the words of transformers' attention functions."""


def install(model: Any) -> Taken:
    """Let the model attend a document at a time.

    Only a model on SDPA can, and only one whose own code hands masks on as they are.
    """
    if (asked := model.config._attn_implementation) != "sdpa":
        return sort_out([f"attention is {asked}, not SDPA"])
    if any(_looks_into_masks(kind) for kind in {type(module) for module in model.modules()}):
        return sort_out(["the model's own code looks into masks"])
    if model._can_set_attn_implementation():
        AttentionInterface.register(NAME, attend)
        AttentionMaskInterface.register(NAME, make_mask)
        model.set_attn_implementation(NAME)
    return sort_out([None if model.config._attn_implementation == NAME else "the model takes no other attention"])


def make_mask(batch_size: int, q_length: int, kv_length: int, **asked: Any) -> torch.Tensor | None:
    """Return the bounds of packed documents where they are all that the mask says, else transformers' own mask.

    Args:
        batch_size: rows.
        q_length: queries of a row, in tokens.
        kv_length: keys of a row, in tokens.
        asked: what transformers tells every function that makes masks for SDPA.
    """
    # What may be left to `is_causal` is no packed row; a function that has to be mapped cannot be asked about tensors.
    packed = not asked.get("allow_is_causal_skip", True) and not asked.get("use_vmap")
    whole = q_length == kv_length and asked.get("attention_mask") is None
    if packed and whole and not _is_moved(asked) and not torch.compiler.is_compiling():
        device = asked.get("device", "cpu")
        lengths = read_lengths(asked["mask_function"], batch_size, q_length, device)
        if lengths is not None:
            return write_bounds(lengths, device)
    mask: torch.Tensor | None = sdpa_mask(batch_size, q_length, kv_length, **asked)
    return mask


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
    """Return the attention's output, of shape (rows, tokens, heads, size of a head), and no weights.

    Args:
        module: the attention layer.
        query: of shape (rows, heads, tokens, size of a head).
        key: of shape (rows, key heads, tokens, size of a head).
        value: as `key`.
        attention_mask: bounds of documents as `make_mask` gives them; a mask goes to transformers' own function.
        dropout: of the attention weights.
        scaling: of the products; None takes 1 / √(size of a head).
        others: what transformers passes to every attention function.
    """
    documents = documents_of(attention_mask)
    if documents is None or any(others.get(name) is not None for name in _OTHER_SCORES):
        mask = attention_mask
        if documents is not None and attention_mask is not None:
            mask = write_mask(attention_mask, len(query))
        out: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, mask, dropout=dropout, scaling=scaling, **others
        )
        return out
    return _attend(query, key, value, attention_mask, documents, dropout, scaling), None


# What is known of the documents is looked up by the tensor, which a compiler cannot follow.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: Any, documents: Documents, dropout: float,
    scaling: float | None,
) -> torch.Tensor:  # fmt: skip
    shape = (query.shape[0], query.shape[2])
    kind, dtype = query.device.type, query.dtype
    # Autocast knows SDPA, and no other kernel.
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    query, key, value = (one.transpose(1, 2).flatten(0, 1).to(dtype) for one in (query, key, value))
    kernel = attention_kernel(kind, dtype.itemsize)
    if kernel == "varlen" and can_attend_varlen(query, key, value, dropout, scaling):
        out = attend_varlen(query, key, value, bounds, documents.longest, scaling)
    elif kernel == "by_block" and can_attend_by_block(query, key, value, dropout):
        out = attend_by_block(query, key, value, documents.layout(query.device), scaling)
    else:
        out = attend_by_document(query, key, value, documents.layout(query.device), dropout, scaling)
    return out.unflatten(0, shape)


def _is_moved(asked: dict[str, Any]) -> bool:
    """Return whether queries or keys begin elsewhere than at the row's first token, as beside a cache."""
    return any(not isinstance(asked.get(name, 0), int) or asked.get(name, 0) for name in ("q_offset", "kv_offset"))


def _looks_into_masks(kind: type) -> bool:
    # PEFT's wrappers see the mask of the tokens, before the model makes its own of it.
    code = [one for one in kind.__mro__ if one.__module__.split(".")[0] not in _LIBRARIES]
    own = [one for one in code if not one.__module__.startswith("transformers.") or ".models." in one.__module__]
    try:
        return any(_LOOKED_INTO.search(inspect.getsource(one)) for one in own)
    except (OSError, TypeError):
        # Nothing is known of code without a source.
        return True
