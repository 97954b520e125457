"""AdaLoRA: rank is taken from the matrices that need it least, while training runs.

Zhang et al. 2023, arXiv:2303.10512. PEFT brings the allocator and the penalty, and leaves both to its caller:
transformers' Trainer never asks the allocator, and TRL's losses are not the one that the penalty is added to.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from hf_peft_recipes.adapters import to_float32
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.methods.step import Material, Step
from hf_peft_recipes.proof import TrainingProof

WARMUP_SHARE, FINAL_SHARE = 0.1, 0.5
"""Of all steps: those before the first cut, and those after the last. The paper's schedules lie near both (table 8)."""
FEWEST = 4
"""Steps before the first cut, however short the run: a matrix without ranks has no gradient to prove that it trains."""
IMPORTANCE_FILE = "rank_importance.safetensors"
"""Beside a checkpoint: what the allocator has seen so far."""


def serves(adapter: Mapping[str, Any]) -> bool:
    """Return whether the section is AdaLoRA's."""
    return str(adapter.get("peft_type")).upper() == "ADALORA"


_PARTS = ("lora_A", "lora_B", "lora_E")


class AdaLora(Step):
    """Drives the allocator of a new adapter; one that is gone on with keeps the ranks that it has."""

    def __init__(self, adapter: Mapping[str, Any]) -> None:
        super().__init__(adapter)
        self._goes_on = bool(adapter.get("adapter_name_or_path"))
        self._ranks = Ranks(adapter.get("tinit"), adapter.get("tfinal"), allocates=not self._goes_on)
        first, last = adapter.get("init_r", 12), adapter.get("target_r", 8)
        if not self._goes_on and last >= first:
            raise UserError(f"adapter.target_r = {last} leaves nothing to take from adapter.init_r = {first}")

    def settings(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the section with a schedule that PEFT accepts; the real one is known once training begins."""
        if self._goes_on:
            return arguments
        given = {name: arguments.get(name) or 0 for name in ("tinit", "tfinal")}
        return {**arguments, **given, "total_step": sum(given.values()) + 1}

    def begin(self, model: Any, material: Material) -> None:
        """Freeze what is no part of the method."""
        _freeze_divisors(model)

    def attach(self, trainer: Any) -> None:
        """Let the allocator see every step."""
        if hasattr(trainer.model.base_model, "rankallocator"):
            self._ranks.tuner = trainer.model.base_model
            self._ranks.proofs = [
                callback for callback in trainer.callback_handler.callbacks if isinstance(callback, TrainingProof)
            ]
            trainer.add_callback(self._ranks)

    def finish(self, model: Any) -> None:
        """Leave out what was cut, as who loads the files does."""
        self._ranks.cut()


class Ranks(TrainerCallback):
    """Asks the allocator after each update, while the gradients are still there, and adds the penalty's gradient.

    Until the end the config names no pattern, so that a checkpoint holds all ranks, those that are cut as zeros: it
    loads into what training began with.
    """

    tuner: Any
    proofs: Sequence[TrainingProof] = ()

    def __init__(self, tinit: int | None, tfinal: int | None, allocates: bool) -> None:
        self._given = (tinit, tfinal)
        self._allocates = allocates
        self.pattern: dict[str, list[bool]] | None = None

    def _named(self) -> Iterator[tuple[str, int | None]]:
        return zip(("tinit", "tfinal"), self._given, strict=True)

    @property
    def _config(self) -> Any:
        return self.tuner.peft_config[self.tuner.trainable_adapter_name]

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Lay the schedule over the steps of this run."""
        if not self._allocates:
            return
        config, steps = self._config, state.max_steps
        tinit, tfinal = self._given
        config.total_step = steps
        if tinit is None:
            tinit = min(max(int(WARMUP_SHARE * steps), FEWEST), steps - 1 - (tfinal or 0))
        if tfinal is None:
            tfinal = min(int(FINAL_SHARE * steps), steps - 1 - tinit)
        config.tinit, config.tfinal = tinit, tfinal
        if min(tinit, tfinal) < 0 or tinit + tfinal >= steps:
            given = " and ".join(f"adapter.{name} = {value}" for name, value in self._named() if value is not None)
            raise UserError(f"{given}: none of the run's {steps} steps is left to take ranks in")
        # Of a run that goes back, what it had cut since is not cut yet.
        self.pattern = None
        if state.global_step:
            self._resume(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Add the gradient of the penalty on matrices that are not orthogonal (equation 4 of the paper).

        It depends on no data: added once an update, it is the same on every process and under any accumulation.
        """
        matrices = self._matrices()
        penalty = sum(_distance_from_orthogonal(name, matrix) for name, matrix in matrices.items()) / len(matrices)
        weighted = self._config.orth_reg_weight * penalty
        gradients = torch.autograd.grad(weighted, list(matrices.values()))
        for matrix, gradient in zip(matrices.values(), gradients, strict=True):
            if matrix.grad is not None:
                matrix.grad.add_(gradient)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Let the allocator score all ranks and cut some; the gradients are cleared only after this."""
        if not self._allocates or all(matrix.grad is None for matrix in self._matrices().values()):
            # A step that is left out says nothing about the ranks.
            return
        config = self._config
        config.rank_pattern = self.pattern
        self.tuner.update_and_allocate(state.global_step + 1)
        self.pattern, config.rank_pattern = config.rank_pattern, None
        empty = [name for name, kept in (self.pattern or {}).items() if not any(kept)]
        for proof in self.proofs:
            proof.excused = {f"base_model.model.{name.replace('lora_E', part)}" for name in empty for part in _PARTS}

    def write_part(self, folder: Path) -> None:
        """Write what the allocator has seen into a checkpoint, for `--resume`."""
        if self._allocates:
            allocator = self.tuner.rankallocator
            seen = {"ipt": allocator.exp_avg_ipt, "unc": allocator.exp_avg_unc}
            tensors = {f"{kind}:{name}": tensor for kind, found in seen.items() for name, tensor in found.items()}
            save_file(tensors, folder / IMPORTANCE_FILE)

    def cut(self) -> None:
        """Take out of the model what the allocator has cut, and name in its config what is left."""
        from peft.tuners.adalora import AdaLoraLayer

        if self.pattern:
            self.tuner.resize_modules_by_rank_pattern(self.pattern, self.tuner.trainable_adapter_name)
            self._config.rank_pattern = self.pattern
            to_float32(self.tuner)
            _freeze_divisors(self.tuner)
        elif self._config.rank_pattern:
            # Cut in an earlier run. Who loads it cuts again, and what is cut has the base's precision.
            for layer in (module for module in self.tuner.modules() if isinstance(module, AdaLoraLayer)):
                dtype = layer.get_base_layer().weight.dtype
                for matrices in (layer.lora_A, layer.lora_B, layer.lora_E):
                    for matrix in matrices.values() if dtype.is_floating_point else ():
                        matrix.data = matrix.data.to(dtype).float()

    def _resume(self, checkpoint: Path) -> None:
        """Take up what the allocator had seen, and what it had cut: zeros are nothing else."""
        allocator = self.tuner.rankallocator
        path = checkpoint / IMPORTANCE_FILE
        for key, tensor in (load_file(path) if path.is_file() else {}).items():
            kind, _, name = key.partition(":")
            parameter = self.tuner.model.get_parameter(name)
            {"ipt": allocator.exp_avg_ipt, "unc": allocator.exp_avg_unc}[kind][name] = tensor.to(parameter.device)
            allocator.ipt[name] = torch.zeros_like(parameter)
        mark = f"lora_E.{self.tuner.trainable_adapter_name}"
        values = {name: value for name, value in self.tuner.model.named_parameters() if mark in name}
        if any(bool((value == 0).any()) for value in values.values()):
            self.pattern = {name: (value != 0).view(-1).tolist() for name, value in values.items()}

    def _matrices(self) -> dict[str, torch.Tensor]:
        adapter = self.tuner.trainable_adapter_name
        return {
            name: value
            for name, value in self.tuner.model.named_parameters()
            if f"lora_A.{adapter}" in name or f"lora_B.{adapter}" in name
        }


def _distance_from_orthogonal(name: str, matrix: torch.Tensor) -> torch.Tensor:
    """Return how far the rows of A, or the columns of B, are from being orthonormal: a Frobenius norm."""
    product = matrix @ matrix.T if "lora_A" in name else matrix.T @ matrix
    return torch.linalg.matrix_norm(product - torch.eye(len(product), device=matrix.device, dtype=matrix.dtype))


def _freeze_divisors(model: torch.nn.Module) -> None:
    """Freeze what PEFT divides by, the rank at the start: it lets that train too, and does not save it."""
    for name, parameter in model.named_parameters():
        if ".ranknum." in name:
            parameter.requires_grad_(False)


make = AdaLora
