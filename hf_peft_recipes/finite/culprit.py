"""Where a number that is none came from: a step's micro-batches once more, module by module."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from accelerate.utils import gather_object

from hf_peft_recipes.float8 import is_float8, whole

_T = TypeVar("_T")

Fed = tuple[Mapping[str, Any], dict[str, Any]]
"""What the loss of a micro-batch was computed from: its tensors on the device, and the further arguments."""


@dataclass(frozen=True)
class Culprit:
    """The first tensor that is not finite."""

    tensor: str
    """What it is: `the output of model.layers.3.mlp`."""
    process: int = 0
    micro_batch: int | None = None
    """In which it was found, counted from 0; None where it does not depend on the batch."""


def find_culprit(trainer: Any, loss: Callable[..., Any], fed: Sequence[Fed]) -> Culprit | None:
    """Return the first tensor of a step that is not finite; None where it did not come up again.

    First the weights; then each module's output, in the order of the forward pass; then each trainable tensor's
    gradient, in the order of the backward pass. Gradients are cleared. Every process goes through all of its
    micro-batches, as those that share the model have to do it together.

    Args:
        trainer: of the run.
        loss: its `compute_loss`, without what watches it.
        fed: of the step's micro-batches.
    """
    model, rank = trainer.accelerator.unwrap_model(trainer.model), trainer.args.process_index
    broken = broken_weight(model)
    if found := agreed(trainer, Culprit(broken, rank) if broken else None):
        return found
    # DeepSpeed's backward pass is its engine's.
    for replay in (_forward,) if trainer.is_deepspeed_enabled else (_forward, _backward):
        trainer.model_wrapped.zero_grad()
        first: Culprit | None = None
        for number, (inputs, options) in enumerate(fed):
            name = replay(trainer, model, loss, dict(inputs), options)
            first = first or (Culprit(name, rank, number) if name else None)
            if first and trainer.args.world_size == 1:
                break
        if found := agreed(trainer, first):
            break
    trainer.model_wrapped.zero_grad()
    return found


def agreed(trainer: Any, found: _T | None) -> _T | None:
    """Return what the first process has found that has found something; the same in all of them."""
    if trainer.args.world_size == 1:
        return found
    return next((one for one in gather_object([found]) if one is not None), None)


def broken_weight(model: Any, trainable_only: bool = False) -> str | None:
    """Return which weight of a model is not finite, the first one; None where all are.

    Buffers are left out: masks are among them, and hold infinities on purpose.

    Args:
        model: out of its trainer's wrappers, or sharded: each process then looks at what it holds.
        trainable_only: whether frozen ones are left out.
    """
    for name, tensor in model.named_parameters():
        if (not trainable_only or tensor.requires_grad) and not _is_finite(tensor):
            return f"the weight {name}"
    return None


def _forward(trainer: Any, model: Any, loss: Callable[..., Any], inputs: dict[str, Any], options: Any) -> str | None:
    found: list[str] = []
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            hooks.enter_context(_removed(module.register_forward_hook(_noting(name, found))))
        with torch.no_grad(), trainer.compute_loss_context_manager():
            value = loss(trainer.model_wrapped, inputs, **options)
    if not found and not _is_finite(value):
        return "the loss, all outputs of the model being finite"
    return found[0] if found else None


def _noting(name: str, found: list[str]) -> Callable[..., None]:
    def note(module: Any, inputs: Any, output: Any) -> None:
        if not found and not all(map(_is_finite, _tensors(output))):
            found.append(f"the output of {name or type(module).__name__}")

    return note


def _backward(trainer: Any, model: Any, loss: Callable[..., Any], inputs: dict[str, Any], options: Any) -> str | None:
    found: list[str] = []

    def watching(name: str) -> Callable[[torch.Tensor], None]:
        def note(gradient: torch.Tensor) -> None:
            if not found and not _is_finite(gradient):
                found.append(f"the gradient of {name}")

        return note

    with ExitStack() as hooks:
        for name, tensor in model.named_parameters():
            if tensor.requires_grad:
                hooks.enter_context(_removed(tensor.register_hook(watching(name))))
        for module in model.modules():
            # Who is waited for is called: blocks that a faster path makes one function of have their gradients at once.
            hooks.enter_context(_removed(module.register_forward_hook(lambda *_: None)))
        with trainer.compute_loss_context_manager():
            value = loss(trainer.model_wrapped, inputs, **options)
        with trainer.accelerator.no_sync(trainer.model_wrapped):
            value.backward()
    return found[0] if found else None


@contextmanager
def _removed(hook: Any) -> Iterator[None]:
    try:
        yield
    finally:
        hook.remove()


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in what a module returns."""
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, Mapping):
        yield from (one for value in output.values() for one in _tensors(value))
    elif isinstance(output, (tuple, list)):
        yield from (one for value in output for one in _tensors(value))


def _is_finite(tensor: torch.Tensor) -> bool:
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    # torch cannot ask 8-bit floats themselves.
    local = whole(local, local.dtype) if is_float8(local) else local
    return not local.is_floating_point() or bool(torch.isfinite(local).all())
