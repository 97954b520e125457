"""Tensors of which each process holds a part: the part, and the whole.

FSDP2 keeps parameters as `DTensor`; DeepSpeed keeps a float32 copy of what trains in flat parts, and ZeRO-3 empties the
parameters themselves. What is said of a tensor by
itself (has it moved, has it a gradient) is said of each part; what is written is the whole, which takes all processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return the part of a tensor that this process holds; all of it where it is not split.

    Args:
        tensor: a parameter, or its gradient.
    """
    if _is_split(tensor):
        part: torch.Tensor = tensor.to_local()
        return part
    stage3, mapping = getattr(tensor, "_z3_optimizer", None), getattr(tensor, "_hp_mapping", None)
    # What DeepSpeed steps on: a parameter in bfloat16 beside it may stay where it is for many steps.
    if stage3 is not None and tensor.requires_grad:
        found: torch.Tensor = stage3.get_local_fp32_param(tensor)
        return found
    if mapping is not None:
        held: torch.Tensor = mapping.get_hp_fragment()
        return held
    # ZeRO-3 empties the parameter, and fills it while it is needed.
    frozen: torch.Tensor = getattr(tensor, "ds_tensor", tensor)
    return frozen


def parts_differ(tensor: torch.Tensor) -> bool:
    """Return whether a parameter is split, so that what one process says of its part does not hold for the whole."""
    return _is_split(tensor) or hasattr(tensor, "ds_id") or hasattr(tensor, "_hp_mapping")


def shape(tensor: torch.Tensor) -> tuple[int, ...]:
    """Return the shape of the whole tensor."""
    return tuple(getattr(tensor, "ds_shape", tensor.shape))


def size(tensor: torch.Tensor) -> int:
    """Return how many elements the whole tensor has."""
    return int(getattr(tensor, "ds_numel", tensor.numel()))


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return all of a tensor; every process must ask for the same ones in the same order.

    Args:
        tensor: a parameter. One that ZeRO-3 has split is whole within `gathered` alone.
    """
    if _is_split(tensor):
        return tensor.full_tensor()
    if tensor.requires_grad and (hasattr(tensor, "_z3_optimizer") or hasattr(tensor, "_hp_mapping")):
        from deepspeed.utils import safe_get_full_fp32_param

        found: torch.Tensor = safe_get_full_fp32_param(tensor)
        return found
    return tensor


def is_split(model: Any) -> bool:
    """Return whether some parameter of the model is held in parts."""
    return any(map(parts_differ, model.parameters()))


def let_go(model: Any) -> None:
    """Let every process hold its parts alone: what a pass through the model has gathered may still be there."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextmanager
def gathered(model: Any) -> Iterator[None]:
    """Run the block with whatever trains whole where ZeRO-3 has split it; every process must come here."""
    split = [one for one in model.parameters() if hasattr(one, "ds_id") and one.requires_grad]
    context: AbstractContextManager[Any] = nullcontext()
    if split:
        import deepspeed

        context = deepspeed.zero.GatheredParameters(split)
    with context:
        yield


def whole_state(model: Any) -> dict[str, torch.Tensor] | None:
    """Return the model's state, on the CPU, with all that its files will hold whole; None where nothing is split.

    Of an adapter's model the frozen base is left as it is, in parts: no file of the adapter holds it.

    Args:
        model: of transformers, or of PEFT; every process must come here, and each gets the whole.
    """
    import torch

    if not is_split(model):
        return None
    written = _written(model)
    let_go(model)
    state = dict[str, torch.Tensor]()
    with gathered(model), torch.no_grad():
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name, tensor in model.state_dict().items():
            full = whole(parameters.get(name, tensor)) if name in written else tensor
            state[name] = full.detach().cpu().clone() if name in written else tensor
    return state


def rounded(model: Any, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the state with modules that train whole in the base's dtype, into which a client loads them.

    Args:
        model: of transformers, or of PEFT.
        state: as `whole_state` returns it; it is changed.
    """
    from peft.utils import ModulesToSaveWrapper

    for path, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            for name, original in module.original_module.named_parameters():
                for adapter in module.modules_to_save:
                    copy = f"{path}.modules_to_save.{adapter}.{name}"
                    state[copy] = state[copy].to(original.dtype)
    return state


def _is_split(tensor: torch.Tensor) -> bool:
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def _written(model: Any) -> set[str]:
    """Return the names of the tensors that a file of the model holds."""
    state = model.state_dict()
    if not hasattr(model, "peft_config"):
        return set(state)
    from peft import get_peft_model_state_dict

    trained = {name for name, one in model.named_parameters(remove_duplicate=False) if one.requires_grad}
    # Of embeddings that PEFT adds by itself, and of buffers, no parameter says that they are written.
    written = get_peft_model_state_dict(model, state_dict=state, adapter_name=model.active_adapter)
    kept = {id(one) for one in written.values()}
    return trained | {name for name, one in state.items() if id(one) in kept}


def trained_tensors(model: Any, state: Mapping[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
    """Return what trains by name, whole.

    Args:
        model: as it was trained.
        state: as `whole_state` returns it.
    """
    named = {name: one for name, one in model.named_parameters() if one.requires_grad}
    return named if state is None else {name: state[name] for name in named}


def before_first_step(trainer: Any, work: Callable[[], None]) -> None:
    """Let a trainer do some work once its model is split over the processes, before anything is loaded into it.

    A model that is yet to be split is whole in none of them: the first process may be the only one that has read it.

    Args:
        trainer: of transformers.
        work: is done once, by every process.
    """
    create = trainer.create_scheduler

    def created(*arguments: Any, **keywords: Any) -> Any:
        trainer.create_scheduler = create
        # A method that calls the model's inner parts begins, for FSDP, as a pass through it does.
        from torch.distributed.fsdp import register_fsdp_forward_method

        register_fsdp_forward_method(trainer.model, "generate")
        work()
        # A checkpoint is read into parts, and what the last pass gathered may still be there.
        let_go(trainer.model)
        return create(*arguments, **keywords)

    # The first thing that upstream calls when engine, model and optimizer are one, and a checkpoint is not read yet.
    trainer.create_scheduler = created
