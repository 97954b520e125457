"""LoRA-GA: A and B begin along the gradient of full fine-tuning (Wang et al. 2024, arXiv:2407.05000)."""

import dataclasses
import warnings
from collections.abc import Mapping
from itertools import islice
from typing import Any

import torch

from hf_peft_recipes.methods.held_start import HeldStart, doubled
from hf_peft_recipes.methods.step import Material, Step, starts_with

ROWS = 64
"""Rows whose gradients are averaged, one at a time: no more memory than a row and the gradients themselves."""

BASE_LAYERS = r".*\.base_layer"
"""The wrapped layers, by their names: PEFT looks for plain ones."""


def serves(adapter: Mapping[str, Any]) -> bool:
    """Return whether the section is that of a new LoRA-GA adapter."""
    return starts_with(adapter, "lora_ga")


class LoraGa(Step):
    """Averages the gradients of the target weights over some rows, and decomposes them."""

    looks_at_rows = True

    def __init__(self, adapter: Mapping[str, Any]) -> None:
        super().__init__(adapter)
        self._start = HeldStart()

    def settings(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the section of a plain LoRA that has room for the start."""
        plain = {key: value for key, value in arguments.items() if key != "lora_ga_config"}
        return doubled(plain)

    def begin(self, model: Any, material: Material) -> None:
        """Set A and B."""
        from peft.tuners.lora import LoraGAConfig
        from peft.tuners.lora.loraga import preprocess_loraga

        config = model.peft_config[model.active_adapter]
        given = LoraGAConfig(**(self.adapter.get("lora_ga_config") or {}))
        probe = dataclasses.replace(
            config, target_modules=BASE_LAYERS, init_lora_weights="lora_ga", lora_ga_config=given
        )
        sequences = list(islice(material.sequences(), ROWS))

        def train_step() -> None:
            for sequence in sequences:
                model(**material.batch([sequence], model.device)).loss.backward()

        with torch.random.fork_rng(), warnings.catch_warnings():
            # The first layer's inputs have no gradient; PEFT counts its own all the same.
            warnings.filterwarnings("ignore", "Full backward hook is firing")
            torch.manual_seed(material.seed)
            preprocess_loraga(model, probe, train_step)
            self._start.begin(model, lambda layer, name: layer.lora_ga_init(name, given))

    def attach(self, trainer: Any) -> None:
        """Hold the start."""
        self._start.attach(trainer)

    @property
    def held(self) -> int:
        """The start's numbers."""
        return self._start.size


make = LoraGa
