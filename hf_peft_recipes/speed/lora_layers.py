"""What a LoRA layer of PEFT's is to compute now, and whether that is something that the faster paths know.

DoRA and other variants, trained bases, biases of an adapter's own, quantisation of another kind than NF4 and 8-bit
floats keep to PEFT's way; so does, at any moment, a layer whose adapter is merged or disabled, or one of several that
are active. A reason that shows only then is said once.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from hf_peft_recipes.float8 import is_weight_only
from hf_peft_recipes.speed.modules import is_hooked, is_replaced

_logger = logging.getLogger(__name__)
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
"""float16 is left to PEFT: its adapters work in float32, where nothing overflows."""


class Projection(NamedTuple):
    """One layer as it is to be computed now: a frozen base and an adapter."""

    base: torch.nn.Module
    a: torch.Tensor
    """Of shape (rank, inputs)."""
    b: torch.Tensor
    """Of shape (outputs, rank)."""
    scaling: float
    dropout: torch.nn.Module | None
    """None where nothing is dropped."""


def is_lora(module: Any) -> bool:
    """Return whether a module is a layer with LoRA of any kind."""
    from peft.tuners.lora import LoraLayer

    return isinstance(module, LoraLayer)


def why_not_plain(layer: Any) -> str | None:
    """Return why a LoRA layer is left to PEFT; None where it stands over a frozen base of a kind that is known here."""
    from peft.tuners import lora

    base = layer.base_layer
    if type(layer) is lora.Linear or type(layer).__name__ == "TorchaoLoraLinear":
        if type(base) is not torch.nn.Linear or layer.fan_in_fan_out:
            return f"the base is a {type(base).__name__}"
        if type(layer) is not lora.Linear and not is_weight_only(base.weight):
            return "another quantisation of torchao's"
    elif type(layer) is not getattr(lora, "Linear4bit", None):
        return f"the layer is a {type(layer).__name__}"
    elif not _is_nf4(base):
        return "four bits of another kind than NF4"
    if base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad):
        return "the base learns"
    # Where accelerate has put itself before a layer, it fetches the weight from elsewhere.
    if hasattr(base, "_hf_hook") or hasattr(layer, "_hf_hook"):
        return "accelerate fetches the weights"
    if is_replaced(layer):
        return "another's function stands in the layer's place"
    variants = {type(layer.lora_variant[name]).__name__ for name in layer.active_adapters if name in layer.lora_variant}
    return f"the adapter is a {', '.join(sorted(variants))}" if variants else None


def has_lora(module: Any, names: Sequence[str]) -> bool:
    """Return whether any of a module's layers by these names has LoRA of any kind."""
    return any(is_lora(getattr(module, name, None)) for name in names)


def why_not_all_plain(module: Any, names: Sequence[str]) -> str | None:
    """Return why a module's layers by these names are no one function; None where all are plain LoRA layers."""
    for name in names:
        layer = getattr(module, name, None)
        if not is_lora(layer):
            return f"no LoRA on {name}"
        if reason := why_not_plain(layer):
            return reason
    return None


def _is_nf4(base: Any) -> bool:
    state = getattr(getattr(base, "weight", None), "quant_state", None)
    return type(base).__name__ == "Linear4bit" and state is not None and state.quant_type == "nf4"


def projection_of(layer: Any, x: torch.Tensor) -> Projection | None:
    """Return how a layer is to be computed now; None where that is PEFT's own way.

    Args:
        layer: a module; of LoRA or not.
        x: its input.
    """
    # What is evaluated or generated comes from PEFT's code, as it does for whoever loads the adapter. A compiler wants
    # operations that it can join with others.
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or not is_lora(layer):
        return None
    if reason := why_not_plain(layer) or _why_not_now(layer, x):
        _say(reason)
        return None
    name = layer.active_adapters[0]
    dropout = layer.lora_dropout[name]
    drops = isinstance(dropout, torch.nn.Dropout) and dropout.training and dropout.p > 0
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    return Projection(layer.base_layer, a, b, float(layer.scaling[name]), dropout if drops else None)


def projections_of(layers: Sequence[Any], x: torch.Tensor) -> list[Projection] | None:
    """Return how layers that are one function are to be computed now; None where that is each alone.

    Args:
        layers: of LoRA or not.
        x: the input of the first.
    """
    # Who has hooked into a layer wants to see it run.
    if any(map(is_hooked, layers)):
        return None
    found = [projection_of(layer, x) for layer in layers]
    parts = [part for part in found if part is not None and part.dropout is None]
    alike = len({product_dtype(part.base, x) for part in parts}) == 1
    return parts if alike and len(parts) == len(layers) else None


def _why_not_now(layer: Any, x: torch.Tensor) -> str | None:
    names = layer.active_adapters
    if layer.disable_adapters or layer.merged:
        return "the adapter is merged" if layer.merged else "the adapter is disabled"
    if x.dtype not in DTYPES:
        return f"inputs are {str(x.dtype).removeprefix('torch.')}"
    if len(names) != 1 or names[0] not in layer.lora_A:
        return f"{len(names)} adapters are active" if len(names) != 1 else f"adapter {names[0]!r} has no part here"
    down, up, dropout = layer.lora_A[names[0]], layer.lora_B[names[0]], layer.lora_dropout[names[0]]
    if up.bias is not None or down.bias is not None:
        return "the adapter has a bias"
    # Who has hooked into a part wants to see it run.
    if any(map(is_hooked, (layer.base_layer, down, up))):
        return "a part has a hook"
    if not isinstance(dropout, (torch.nn.Identity, torch.nn.Dropout)):
        return f"what is dropped is chosen by a {type(dropout).__name__}"
    # Without autocast PEFT computes an adapter in its own precision, which is more than the base's.
    if not torch.is_autocast_enabled(x.device.type) and down.weight.dtype != product_dtype(layer.base_layer, x):
        return "without autocast the adapter has a precision of its own"
    return None


def product_dtype(base: Any, x: torch.Tensor) -> torch.dtype:
    """Return in which precision a layer's products are made: autocast's, a quantised weight's, the input's."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return getattr(base, "compute_dtype", None) or x.dtype


def as_base(out: torch.Tensor, base: Any, x: torch.Tensor) -> torch.Tensor:
    """Return an output in the dtype that the base's own would have: one in four bits gives back its input's."""
    return out.to(x.dtype) if hasattr(base, "compute_dtype") else out


@functools.cache
def _say(reason: str) -> None:
    _logger.warning("LoRA layers are computed by PEFT's own code: %s", reason)
