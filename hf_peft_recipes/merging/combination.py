"""Several adapters on one base, made one by PEFT's `add_weighted_adapter`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hf_peft_recipes.errors import UserError
from hf_peft_recipes.merging.request import MergeRequest

_NAME = "combined"


def shares(request: MergeRequest) -> list[float]:
    """Return the weight of every adapter, the run's own first."""
    number = len(request.adapters) + 1
    return list(request.weights) if request.weights is not None else [1 / number] * number


def combine(model: Any, request: MergeRequest, seed: int, folder: Path) -> Path:
    """Combine the run's adapter with the others, on its model and in a folder; return that folder.

    Args:
        model: the run's base with its adapter; the combined one is active on it afterwards.
        request: with further adapters.
        seed: of the entries that DARE drops.
        folder: below which the combined adapter is saved, for all variants to merge the same one.

    Raises:
        UserError: PEFT refuses the combination.
    """
    names = [model.active_adapter, *(f"with_{number}" for number in range(len(request.adapters)))]
    try:
        for name, other in zip(names[1:], request.adapters, strict=True):
            model.load_adapter(str(other), adapter_name=name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model.add_weighted_adapter(names, shares(request), _NAME, **request.combination)
    except (ValueError, RuntimeError, TypeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise UserError(f"PEFT cannot combine these adapters: {' '.join(lines[:2])}") from error
    model.set_adapter(_NAME)
    _forget(model, names)
    model.save_pretrained(str(folder), selected_adapters=[_NAME])
    return folder / _NAME


def _forget(model: Any, names: Sequence[str]) -> None:
    """Drop the adapters that were combined, and scale the combination by one."""
    from peft.tuners.lora import LoraLayer

    for name in names:
        model.delete_adapter(name)
    # PEFT 0.21 puts every scale into the combined tensors and then, under rsLoRA, scales by the root of the rank again.
    model.peft_config[_NAME].use_rslora = False
    for layer in model.modules():
        if isinstance(layer, LoraLayer) and _NAME in layer.scaling:
            layer.scaling[_NAME] = 1.0
