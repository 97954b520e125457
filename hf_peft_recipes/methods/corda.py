"""CorDA: A and B begin as the part of each weight that matters for the data (Yang et al. 2024, arXiv:2406.05223)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from hf_peft_recipes.methods.held_start import HeldStart, doubled
from hf_peft_recipes.methods.lora_ga import BASE_LAYERS
from hf_peft_recipes.methods.step import Material, Step, starts_with

TOKENS_A_DIMENSION = 128
"""Tokens to measure the covariance of a layer's inputs on, for each of their dimensions: the advice in PEFT's
`preprocess_corda`; 256 rows of 2,048 tokens at a width of 4,096, as in the paper."""


def serves(adapter: Mapping[str, Any]) -> bool:
    """Return whether the section is that of a new CorDA adapter."""
    return starts_with(adapter, "corda")


class Corda(Step):
    """Measures what goes into each layer on the run's own rows, and decomposes the weights in its light."""

    looks_at_rows = True

    def __init__(self, adapter: Mapping[str, Any]) -> None:
        super().__init__(adapter)
        self._start = HeldStart()

    def settings(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the section of a plain LoRA that has room for the start."""
        plain = {key: value for key, value in arguments.items() if key != "corda_config"}
        return doubled(plain)

    def begin(self, model: Any, material: Material) -> None:
        """Set A and B."""
        from peft.tuners.lora.config import CordaConfig
        from peft.tuners.lora.corda import preprocess_corda

        config = model.peft_config[model.active_adapter]
        # Of half the rank, and under the names that the wrapped layers have.
        ranks = {rf"{name}\.base_layer": rank // 2 for name, rank in config.rank_pattern.items()}
        probe = dataclasses.replace(
            config, r=config.r // 2, rank_pattern=ranks, target_modules=BASE_LAYERS, init_lora_weights="corda",
            corda_config=CordaConfig(**(self.adapter.get("corda_config") or {})),
        )  # fmt: skip
        wanted = TOKENS_A_DIMENSION * model.config.get_text_config().hidden_size

        def run_model() -> None:
            seen = 0
            for sequence in material.sequences():
                batch = material.batch([sequence], model.device)
                # Without the head: no layer of interest comes after it.
                model.get_base_model().base_model(input_ids=batch["input_ids"], use_cache=False)
                seen += len(sequence[0])
                if seen >= wanted:
                    break

        with torch.random.fork_rng():
            torch.manual_seed(material.seed)
            preprocess_corda(model, probe, run_model)
            self._start.begin(model, lambda layer, name: layer.corda_init(name, "corda"))

    def attach(self, trainer: Any) -> None:
        """Hold the start."""
        self._start.attach(trainer)

    @property
    def held(self) -> int:
        """The start's numbers."""
        return self._start.size


make = Corda
