"""Layers that are computed a second time on the way back, so that less of them is kept: as many as memory asks for.

Of a layer either the feed-forward part alone is made anew, which is where most of its products and its widest tensors
are, or the whole block, from its input (Chen et al. 2016, arXiv:1604.06174). The model's first layers are taken: the
way back begins at the last ones, and what is made anew there would be beside all that is kept. What is drawn (dropout)
is drawn alike, and the gradients are the same to the last bit. What whole blocks keep, their inputs, may wait in the
host's memory until they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint, noop_context_fn
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_peft_recipes.spec.recompute import Recompute
from hf_peft_recipes.speed import gated_mlp

_CACHES = ("past_key_values", "past_key_value", "layer_past")
"""What of a block's arguments it writes to: run twice, it would write twice."""


def install(model: Any, amount: Recompute, contexts: Callable[[], Any] = noop_context_fn) -> Recompute:
    """Let the model's first layers be computed again on the way back.

    Return how many of them are: fewer than asked for where the model has no more, has no feed-forward parts by the name
    of `mlp`, or where others have put functions of their own in the place of these.

    Upstream's switch, which every layer has, is left as it is: TRL turns that off while a reference model answers, and
    on again for all layers.

    Args:
        model: ready to train, its adapter and the faster paths in place.
        amount: how many of them.
        contexts: in which they run and run again, `context_fn` of `torch.utils.checkpoint`.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    blocks, others = layers[: amount.blocks], layers[amount.blocks :][: amount.feed_forwards]
    parts: list[Any] = [getattr(layer, "mlp", None) for layer in others]
    blocks, parts = list(filter(_is_free, blocks)), list(filter(_is_free, parts))
    again = partial(checkpoint, use_reentrant=False, context_fn=contexts)
    # Bound to the module, and so to a copy of it where the model is copied.
    for block in blocks:
        block.forward = MethodType(partial(_block, _offloading(again) if amount.offloads else again), block)
    for part in parts:
        part.forward = MethodType(partial(_feed_forward, again, gated_mlp.serves(part)), part)
    return Recompute(len(blocks), len(parts), bool(blocks) and amount.offloads)


def _is_free(module: Any) -> bool:
    return isinstance(module, torch.nn.Module) and ("forward" not in vars(module) or gated_mlp.serves(module))


def _offloading(again: Callable[..., Any]) -> Callable[..., Any]:
    """Return the same with what a block keeps in the host's memory: what is saved within it, checkpointing drops."""

    def elsewhere(plain: Callable[..., Any], block: Any, x: Any, *others: Any, **named: Any) -> Any:
        with save_on_cpu(pin_memory=x.is_cuda):
            return again(plain, block, x, *others, **named)

    return elsewhere


def _block(again: Callable[..., Any], block: Any, *inputs: Any, **named: Any) -> Any:
    plain = type(block).forward
    if not torch.is_grad_enabled() or any(named.get(name) is not None for name in _CACHES):
        return plain(block, *inputs, **named)
    return again(plain, block, *inputs, **named)


def _feed_forward(again: Callable[..., Any], is_gated: bool, part: Any, x: Any, *others: Any, **named: Any) -> Any:
    plain = type(part).forward
    if not torch.is_grad_enabled():
        return plain(part, x, *others, **named)
    # The function makes less anew than the way back through many operations would.
    if is_gated and (out := gated_mlp.as_one(part, x, recomputes=True)) is not None:
        return out
    return again(plain, part, x, *others, **named)
