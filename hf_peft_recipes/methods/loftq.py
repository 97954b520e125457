"""LoftQ: A and B begin as what quantising each weight lost (Li et al. 2023, arXiv:2310.08659).

The base stays as it is quantised, since who loads the adapter quantises it so again: the paper's alternation ends after
one round. PEFT 0.21 needs a GPU for this, takes no account of the adapter's scale, and quantises a base that is not.
"""

from collections.abc import Mapping
from typing import Any

import torch

from hf_peft_recipes import models
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.fingerprint import local_reader, read_headers
from hf_peft_recipes.methods.held_start import lora_layers
from hf_peft_recipes.methods.step import Material, Step, starts_with
from hf_peft_recipes.spec import ResolvedRecipe


def serves(adapter: Mapping[str, Any]) -> bool:
    """Return whether the section is that of a new LoftQ adapter."""
    return starts_with(adapter, "loftq")


class LoftQ(Step):
    """Reads the whole weights once more, one at a time, and gives the adapter what the quantised ones lack."""

    def check(self, recipe: ResolvedRecipe) -> None:
        """Raise a UserError where nothing is quantised, or quantised by other settings than the recipe's own."""
        if not (recipe.section("quantization") or {}).get("load_in_4bit"):
            raise UserError("init_lora_weights: loftq makes up for a base in 4 bits; did you mean --load_in_4bit true?")
        if self.adapter.get("loftq_config"):
            raise UserError(
                "adapter.loftq_config does nothing here: the section quantization says how the base is stored"
            )

    def settings(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the section of a plain LoRA."""
        return {**arguments, "init_lora_weights": True}

    def begin(self, model: Any, material: Material) -> None:
        """Set A and B: the largest singular values of the loss, divided evenly between the two."""
        from peft.utils.integrations import dequantize_module_weight

        adapter, weights = model.active_adapter, Weights(material.model)
        for name, layer in lora_layers(model):
            base, rank = layer.get_base_layer(), layer.r[adapter]
            stored = dequantize_module_weight(base).float()
            lost = weights.read(name.removeprefix("base_model.model."), stored.shape).to(stored) - stored
            u, values, v = torch.linalg.svd(lost, full_matrices=False)
            root = (values[:rank] / layer.scaling[adapter]).sqrt()
            layer.lora_A[adapter].weight.data = (root[:, None] * v[:rank]).contiguous()
            layer.lora_B[adapter].weight.data = (u[:, :rank] * root).contiguous()


class Weights:
    """The weights of a base in its files, read one at a time."""

    def __init__(self, section: Mapping[str, Any] | None) -> None:
        self._folder, _ = models.base_files(section)
        headers = read_headers(local_reader(self._folder))
        self._files = {name: file for file, (_, header) in headers.items() for name in header}

    def read(self, layer: str, shape: torch.Size) -> torch.Tensor:
        """Return the weight of a layer.

        Args:
            layer: its name in the model.
            shape: that it has there.

        Raises:
            UserError: the files hold no such weight, or one of another shape.
        """
        from safetensors import safe_open

        # Some files leave out the first word.
        name = next((f"{one}.weight" for one in (layer, layer.partition(".")[2]) if f"{one}.weight" in self._files), "")
        if name:
            with safe_open(str(self._folder / self._files[name]), "pt") as tensors:
                found: torch.Tensor = tensors.get_tensor(name)
            if found.shape == shape:
                return found
        raise UserError(f"LoftQ compares with the whole weights, and {str(self._folder)!r} holds none of {layer}")


make = LoftQ
