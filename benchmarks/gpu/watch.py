"""What a training does, seen from outside: losses, gradient norms, peaks a step, attention kernels, tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

from benchmarks.gpu.kernels import StepProfile, read_profile
from hf_peft_recipes.measure.memory import Peak, read_peak

_ATTENTION = re.compile(r"scaled_dot_product|flash_att|varlen_att|fmha|xformers|flex_attention", re.I)
_WHOLE_STEPS = 3
"""So many steps at the end are profiled; the slowest is told."""


class Watch(TrainerCallback):
    """Keeps what no log tells. It makes nobody wait for the GPU, but where steps are profiled."""

    def __init__(self, steps: int, profiled: bool = False) -> None:
        self.peaks: list[Peak] = []
        """One a step."""
        self.attention: list[str] = []
        """Operators that attend, of the first micro-batch."""
        self.profile: StepProfile | None = None
        """Of the slowest step that was looked at."""
        self.end: dict[str, Any] = {}
        """Bytes at the end of training, see `held_bytes`."""
        self._first_profiled = steps - _WHOLE_STEPS if profiled else steps
        self._losses: list[torch.Tensor] = []
        self._norms: list[Any] = []
        self._counts: list[int] = []
        self._profiler: Any = None

    def watch(self, trainer: Any) -> None:
        """Follow the trainer, before its own callbacks: they begin to count memory anew."""
        trainer.callback_handler.callbacks.insert(0, self)
        trainer.training_step = self._step(trainer.training_step)
        clip = trainer.accelerator.clip_grad_norm_

        def clipped(*arguments: Any, **keywords: Any) -> Any:
            norm = clip(*arguments, **keywords)
            self._norms.append(norm)
            return norm

        trainer.accelerator.clip_grad_norm_ = clipped

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin to look at the kernels, where they are asked for."""
        if state.global_step >= max(1, self._first_profiled):
            self._profiler = profile(activities=_activities())
            _wait()
            self._profiler.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the step's peak."""
        if self._profiler is not None:
            _wait()
            self._profiler.__exit__(None, None, None)
            found = read_profile(self._profiler)
            self.profile = max(filter(None, (self.profile, found)), key=lambda step: step.seconds)
            self._profiler = None
        self._counts.append(len(self._losses))
        self.peaks.append(read_peak())

    def on_train_end(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        """Take what is held while everything is still there."""
        self.end = held_bytes(model, optimizer)

    def result(self, warmup: int) -> dict[str, Any]:
        """Return it all as JSON has it.

        Args:
            warmup: steps whose peaks do not count.
        """
        starts = [0, *self._counts]
        losses = [float(loss) for loss in self._losses]
        counted = self.peaks[warmup:] or self.peaks
        found: dict[str, Any] = {
            "step_losses": [sum(losses[a:b]) for a, b in zip(starts, self._counts, strict=False)],
            "gradient_norms": [float(norm) for norm in self._norms],
            "attention": self.attention,
            "peaks": {name: _most(counted, name) for name in Peak.__annotations__},
            "held": self.end,
        }
        return found | ({"profile": self.profile.shown()} if self.profile else {})

    def _step(self, train: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def step(*arguments: Any, **keywords: Any) -> torch.Tensor:
            if self._losses:
                loss = train(*arguments, **keywords)
            else:
                with profile(activities=[ProfilerActivity.CPU]) as seen:
                    loss = train(*arguments, **keywords)
                self.attention = sorted({event.name for event in seen.events() if _ATTENTION.search(event.name)})
            # Scaled so that those of a step add up; kept on the device, where nobody waits for it.
            self._losses.append(loss.detach().clone())
            return loss

        return step


def held_bytes(model: Any, optimizer: Any) -> dict[str, Any]:
    """Return what weights, adapters and optimizer hold, and what else the GPU's memory is taken up by, in bytes.

    `context` is what is in use on the device beyond the caching allocator's, CUDA's own and the code of kernels;
    `cublas_workspace` the allocator's blocks that cuBLAS keeps. Without a GPU those are left out.

    Args:
        model: that was trained.
        optimizer: of its trainer, wrapped or not.
    """
    frozen: set[tuple[int, int]] = set()
    trained: set[tuple[int, int]] = set()
    for parameter in model.parameters():
        (trained if parameter.requires_grad else frozen).update(_storages(parameter))
    states = {
        key for state in optimizer.state.values() for value in state.values() for key in _storages(value)
    } if optimizer is not None else set()  # fmt: skip
    held: dict[str, Any] = {
        "frozen": _total(frozen), "trained": _total(trained - frozen), "optimizer": _total(states)
    }  # fmt: skip
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        held["context"] = total - free - torch.cuda.memory_reserved()
        before = torch.cuda.memory_allocated()
        torch._C._cuda_clearCublasWorkspaces()
        held["cublas_workspace"] = before - torch.cuda.memory_allocated()
    return held


def _storages(value: Any) -> Iterator[tuple[int, int]]:
    """Yield address and size of what a value keeps: of a weight in 4 bits, its scales too."""
    if not isinstance(value, torch.Tensor):
        return
    storage = value.untyped_storage()
    yield storage.data_ptr(), storage.nbytes()
    state = getattr(value, "quant_state", None)
    for nested in (state, getattr(state, "state2", None)):
        for name in ("absmax", "code", "offset"):
            yield from _storages(getattr(nested, name, None))


def _total(storages: set[tuple[int, int]]) -> int:
    return sum(size for _, size in storages)


def _most(peaks: list[Peak], name: str) -> int | None:
    values = [value for peak in peaks if (value := getattr(peak, name)) is not None]
    return max(values, default=None)


def _activities() -> list[Any]:
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
