"""Steps that fail on purpose: callbacks that break a batch, a gradient, weights or an allocation, where they are told."""

import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback


class PoisonedRow(TrainerCallback):
    """Makes the outputs of one layer infinite wherever a batch holds one of these rows."""

    def __init__(self, *rows: int) -> None:
        self.rows = rows
        self.met: list[int] = []
        """The steps, counted from 1, in whose forward pass one was met."""
        self.hooked: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any, train_dataloader: Any, **_: Any) -> None:
        """Begin to look out."""
        table = train_dataloader.dataset
        self.wanted = [torch.tensor(table[row]["input_ids"]) for row in self.rows]
        self.state = state
        if self.hooked is not model:
            # A run that goes back trains the same model once more.
            self.hooked = model
            layer = next(module for name, module in model.named_modules() if name.endswith("layers.1.mlp.act_fn"))
            model.get_input_embeddings().register_forward_pre_hook(self._look)
            layer.register_forward_hook(lambda module, inputs, output: output * float("inf") if self.on else output)

    def _look(self, module: Any, inputs: Any) -> None:
        flat = inputs[0].reshape(-1)
        fitting = (row for row in self.wanted if len(row) <= len(flat))
        self.on = any((flat.unfold(0, len(row), 1) == row).all(-1).any() for row in fitting)
        if self.on and torch.is_grad_enabled():
            self.met.append(self.state.global_step + 1)


class WithoutGradient(TrainerCallback):
    """Takes some steps without a gradient."""

    def __init__(self, steps: Sequence[int]) -> None:
        self.steps = steps

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Drop it."""
        if state.global_step + 1 in self.steps:
            for tensor in model.parameters():
                tensor.grad = None


class BrokenGradient(TrainerCallback):
    """Makes the gradient that one layer is sent infinite, at one step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Break it where it is time."""
        if state.global_step + 1 == self.step:
            layer = next(module for name, module in model.named_modules() if name.endswith("layers.1.mlp"))
            layer.register_forward_hook(self._break)

    @staticmethod
    def _break(module: Any, inputs: Any, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient * float("inf"))


class BrokenWeight(TrainerCallback):
    """Makes a frozen weight NaN before training, or a trainable one after one step."""

    def __init__(self, name: str, step: int = 0) -> None:
        self.name, self.step = name, step

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Break it where it is to be broken from the beginning."""
        if not self.step:
            self._break(model)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Break it where it is time."""
        if state.global_step + 1 == self.step:
            self._break(model)

    def _break(self, model: Any) -> None:
        with torch.no_grad():
            model.get_parameter(self.name).view(-1)[0] = float("nan")


class LittleMemory(TrainerCallback):
    """Lets the forward pass of a step fail in torch's own allocator where it has more rows than these at a time."""

    def __init__(self, step: int, rows: int) -> None:
        self.step, self.rows = step, rows
        self.hooked: Any = None

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Take memory away where it is time."""
        self.tight = state.global_step + 1 >= self.step and args.per_device_train_batch_size > self.rows
        if self.hooked is not model:
            self.hooked = model
            layer = next(module for name, module in model.named_modules() if name.endswith("layers.1.mlp"))
            layer.register_forward_pre_hook(lambda module, inputs: self._starve() if self.tight else None)

    @staticmethod
    def _starve() -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (64 << 20), hard))
        try:
            torch.empty(1 << 30, dtype=torch.uint8)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class FailingOptimizer(TrainerCallback):
    """Lets the optimizer run out of memory once, at one step, with a part of the weights moved."""

    def __init__(self, step: int) -> None:
        self.step, self.failed = step, False

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        """Break it where it is time."""
        if state.global_step + 1 != self.step or self.failed:
            return
        self.failed, step = True, optimizer.step

        def half(*_: Any) -> None:
            optimizer.step = step
            with torch.no_grad():
                next(tensor for tensor in model.parameters() if tensor.requires_grad).add_(1.0)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        optimizer.step = half
