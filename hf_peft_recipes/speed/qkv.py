"""Queries, keys and values as one function of autograd: they read one input, and send one gradient back to it.

Upstream's attention asks its three layers one after the other. Before it does, they are made here together, and each
layer gives back what is its own. So attention's code stays as it is, whatever it does with them.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch

from hf_peft_recipes.speed import Taken, sort_out
from hf_peft_recipes.speed.lora_layers import has_lora, projections_of, why_not_all_plain
from hf_peft_recipes.speed.lora_linear import MADE, serves, together
from hf_peft_recipes.speed.modules import forward_of, is_marked, is_replaced, is_written, mark

_PATH = "qkv"
_PARTS = ("q_proj", "k_proj", "v_proj")
_CODE = tuple(f"self.{name}(hidden_states)" for name in _PARTS)
"""What all attention layers that are meant here do, in transformers' words, whatever they do then."""


def install(model: Any) -> Taken:
    """Let each attention layer have its queries, keys and values made together; its three layers are ours already."""
    layers = {module: _why_not(module) for module in model.modules() if has_lora(module, _PARTS)}
    for layer, reason in layers.items():
        if reason is None and not is_marked(layer, _PATH):
            attend = forward_of(layer)
            layer.forward = MethodType(mark(_with_one_function(attend), _PATH, attend), layer)
    return sort_out(layers.values())


def _with_one_function(attend: Callable[..., Any]) -> Callable[..., Any]:
    def forward(layer: Any, hidden_states: torch.Tensor, *others: Any, **named: Any) -> Any:
        parts = [getattr(layer, name) for name in _PARTS]
        projections = projections_of(parts, hidden_states)
        if projections is None:
            return attend(layer, hidden_states, *others, **named)
        try:
            for part, out in zip(parts, together(projections, hidden_states), strict=True):
                vars(part)[MADE] = hidden_states, out
            del out
            return attend(layer, hidden_states, *others, **named)
        finally:
            for part in parts:
                vars(part).pop(MADE, None)

    return forward


def _why_not(layer: Any) -> str | None:
    if reason := why_not_all_plain(layer, _PARTS):
        return reason
    if not all(serves(getattr(layer, name)) for name in _PARTS):
        return "its layers are PEFT's own"
    if is_replaced(layer):
        return "another's function stands in the layer's place"
    return None if is_written(type(layer).forward, _CODE) else f"{type(layer).__name__} asks for them in another way"
