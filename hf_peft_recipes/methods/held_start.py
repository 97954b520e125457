"""Methods that take what an adapter begins with out of the base: here the base stays, and the adapter holds both.

LoRA-GA and CorDA begin with a product B₀A₀ other than zero and subtract it from the weight, so that the model begins as
it was. Whoever loads the adapter later has the whole weight and is off by B₀A₀. So an adapter of twice the rank is
trained, [B, −B₀][A; A₀], whose second half stays as it is: the form that PEFT's own conversion ends with. Then every
checkpoint is right on the base as published, and so is the copy that preference optimisation compares with.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import TrainerCallback

from hf_peft_recipes.errors import UserError


def doubled(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of a plain LoRA of twice the rank, at the same scale."""
    if arguments.get("use_dora"):
        raise UserError("adapter.use_dora: DoRA's magnitudes belong to the whole weight, which this start takes apart")
    stretch = 2**0.5 if arguments.get("use_rslora") else 2
    changed = {"init_lora_weights": True, "r": 2 * arguments.get("r", 8)}
    changed["lora_alpha"] = stretch * arguments.get("lora_alpha", 8)
    for name, factor in (("rank_pattern", 2), ("alpha_pattern", stretch)):
        if arguments.get(name):
            changed[name] = {key: factor * value for key, value in arguments[name].items()}
    return {**arguments, **changed}


def lora_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield name and layer of every linear layer with LoRA."""
    from peft.tuners.lora import LoraLayer

    adapter = model.active_adapter
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and adapter in module.lora_A:
            yield name, module


class HeldStart(TrainerCallback):
    """Keeps the second half of each A and B as it was."""

    def __init__(self) -> None:
        self._held: list[tuple[torch.nn.Parameter, torch.Tensor, int]] = []

    @property
    def size(self) -> int:
        """The number of held numbers."""
        return sum(start.numel() for _, start, _ in self._held)

    def begin(self, model: Any, initialize: Callable[[Any, str], None]) -> None:
        """Set both halves of every layer.

        Args:
            model: with an adapter of twice the rank, see `doubled`.
            initialize: PEFT's function, given a layer and the adapter's name: it sets A₀ and B₀ of half the rank, and
                takes their product from the weight, which is undone here.

        Raises:
            UserError: a layer is too small for twice the rank.
        """
        adapter = model.active_adapter
        for name, layer in lora_layers(model):
            base, rank = layer.get_base_layer(), layer.r[adapter] // 2
            if 2 * rank > min(base.weight.shape):
                raise UserError(
                    f"adapter.r = {rank} is too large for {name}, of {' × '.join(map(str, base.weight.shape))}"
                )
            whole = base.weight.data.clone()
            layer.r[adapter] = rank
            initialize(layer, adapter)
            layer.r[adapter] = 2 * rank
            base.weight.data = whole
            a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
            first, second = a.data.float().to(whole.device), b.data.float().to(whole.device)
            a.data, b.data = torch.cat([first, first]), torch.cat([second, -second], 1)
            self._held += [(a, first, 0), (b, -second, 1)]

    def attach(self, trainer: Any) -> None:
        """Keep gradients out of the held halves, and clipping from counting them."""
        for parameter, start, axis in self._held:
            mask = torch.ones(parameter.shape[axis], device=parameter.device)
            mask[start.shape[axis] :] = 0
            parameter.register_hook(_masked_by(mask[:, None] if axis == 0 else mask))
        trainer.add_callback(self)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Undo weight decay, which asks for no gradient."""
        for parameter, start, axis in self._held:
            size = start.shape[axis]
            parameter.data.narrow(axis, size, size).copy_(start)


def _masked_by(mask: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda gradient: gradient * mask.to(gradient.dtype)
