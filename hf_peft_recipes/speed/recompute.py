"""Layers that are computed a second time on the way back, so that less of them is kept: as many as memory asks for.

Of a layer either the feed-forward part alone is made anew, which is where most of its products and its widest tensors
are, or the whole block, from its input (Chen et al. 2016, arXiv:1604.06174). The model's first layers are taken: the
way back begins at the last ones, and what is made anew there would be beside all that is kept. What is drawn (dropout)
is drawn alike, and the gradients are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint, noop_context_fn
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_peft_recipes.errors import UserError
from hf_peft_recipes.spec.recompute import Recompute
from hf_peft_recipes.speed import gated_mlp


def install(model: Any, amount: Recompute, contexts: Callable[[], Any] = noop_context_fn) -> None:
    """Let the model's first layers be computed again on the way back.

    Args:
        model: ready to train, its adapter and the faster paths in place.
        amount: how many of them.
        contexts: in which whole blocks, and feed-forward parts of many operations, run and run again: `context_fn` of
            `torch.utils.checkpoint`.

    Raises:
        UserError: the model has fewer layers of that kind, or a prefix.
    """
    if amount.blocks and _reads_cache(model):
        raise UserError(f"recompute = {str(amount)!r}: a prefix comes as a cache, which blocks lose that run again")
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    whole, parts = layers[: amount.blocks], layers[amount.blocks :][: amount.feed_forwards]
    feed_forwards = [part for part in map(_feed_forward, parts) if part is not None]
    if (len(whole), len(feed_forwards)) != (amount.blocks, amount.feed_forwards):
        known = sum(_feed_forward(layer) is not None for layer in layers)
        raise UserError(
            f"recompute = {str(amount)!r}: the model has {len(layers)} blocks, of {known} of which the feed-forward "
            "part is known here"
        )
    again = partial(checkpoint, use_reentrant=False, context_fn=contexts)
    for layer in whole:
        # Upstream's own switch, of this layer alone.
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = again
    for part in feed_forwards:
        # Bound to the part, and so to a copy of it where the model is copied.
        part.forward = MethodType(partial(_forward, again, gated_mlp.serves(part)), part)


def _reads_cache(model: Any) -> bool:
    configs = getattr(model, "peft_config", {}).values()
    return any(getattr(config.peft_type, "value", None) == "PREFIX_TUNING" for config in configs)


def _feed_forward(layer: Any) -> Any:
    part = getattr(layer, "mlp", None)
    # Who has put a function of its own in the place of the part's may not want it twice.
    free = isinstance(part, torch.nn.Module) and ("forward" not in vars(part) or gated_mlp.serves(part))
    return part if free else None


def _forward(again: Callable[..., Any], is_gated: bool, part: Any, x: Any, *others: Any, **named: Any) -> Any:
    plain = type(part).forward
    if not torch.is_grad_enabled():
        return plain(part, x, *others, **named)
    # The function makes less anew than the way back through many operations would.
    if is_gated and (out := gated_mlp.as_one(part, x, recomputes=True)) is not None:
        return out
    return again(plain, part, x, *others, **named)
