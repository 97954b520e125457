"""Trainable tokens: the vectors of some tokens learn, in the embedding and in a head that shares it.

Without `token_indices` they are the special tokens that occur in the training rows: those of the chat template, which a
base model has hardly seen.
"""

from collections.abc import Mapping
from itertools import islice
from typing import Any

import torch

from hf_peft_recipes.errors import UserError
from hf_peft_recipes.methods.step import Material, Step

ROWS = 1000
"""Rows that are searched for special tokens."""


def serves(adapter: Mapping[str, Any]) -> bool:
    """Return whether the section is that of trainable tokens."""
    return str(adapter.get("peft_type")).upper() == "TRAINABLE_TOKENS"


class TrainableTokens(Step):
    """Finds the tokens, and shows upstream the head that they are part of."""

    def __init__(self, adapter: Mapping[str, Any]) -> None:
        super().__init__(adapter)
        self.looks_at_rows = not adapter.get("token_indices") and not adapter.get("adapter_name_or_path")

    def settings(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the section with one token, which stands for those that the rows will name."""
        return {**arguments, "token_indices": [0]} if self.looks_at_rows else arguments

    def choose(self, arguments: dict[str, Any], material: Material) -> dict[str, Any]:
        """Return the section with the special tokens of the rows."""
        if not self.looks_at_rows:
            return arguments
        tokenizer = material.tokenizer
        special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
        found = special.intersection(
            *[{token for row in islice(material.sequences(), ROWS) for side in row for token in side}]
        )
        if not found:
            raise UserError("no special token occurs in the training rows: name some tokens by --token_indices [7, 8]")
        return {**arguments, "token_indices": sorted(found)}

    def begin(self, model: Any, material: Material) -> None:
        """Let a head that shares the vectors be seen as they are now: TRL multiplies by its weight, not through it."""
        from peft.tuners.trainable_tokens.layer import TrainableTokensLayer

        base = model.get_base_model()
        head = base.get_output_embeddings()
        if isinstance(head, TrainableTokensLayer):
            seen = _Head(head)
            base.get_output_embeddings = lambda: seen


class _Head:
    """A head with trained rows, for who asks for its weight."""

    bias = None

    def __init__(self, layer: Any) -> None:
        self._layer = layer

    @property
    def weight(self) -> torch.Tensor:
        """Of shape (vocabulary, width)."""
        layer = self._layer
        whole: torch.Tensor = layer.base_layer.weight
        return whole if layer.disable_adapters else layer.get_merged_weights(layer.active_adapters)


make = TrainableTokens
