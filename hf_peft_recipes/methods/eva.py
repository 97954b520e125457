"""EVA: A begins as the directions in which a layer's inputs vary most, ranks go where they vary (Paischer et al. 2024,
arXiv:2410.07170)."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch

from hf_peft_recipes.data.rendering import IGNORED
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.methods.step import Material, Step, starts_with

ROWS = 8
"""Rows of a batch, where they have tokens enough."""
MOST_ROWS = 64
"""And where they have not."""
MOST_BATCHES = 1000
"""A decomposition that has not settled then never will."""


def serves(adapter: Mapping[str, Any]) -> bool:
    """Return whether the section is that of a new EVA adapter."""
    return starts_with(adapter, "eva")


class Eva(Step):
    """Decomposes what goes into each layer, on the run's own rows, until the directions no longer turn."""

    looks_at_rows = True

    def settings(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the section of a plain LoRA."""
        plain = {key: value for key, value in arguments.items() if key != "eva_config"}
        return {**plain, "init_lora_weights": True}

    def begin(self, model: Any, material: Material) -> None:
        """Set A, and each layer's rank."""
        from peft import EvaConfig, initialize_lora_eva_weights

        config = model.peft_config[model.active_adapter]
        eva = EvaConfig(**(self.adapter.get("eva_config") or {}))
        config.init_lora_weights, config.eva_config = "eva", eva
        largest = max([config.r, *config.rank_pattern.values()])
        batches = Batches(material, model.device, round(largest * eva.rho), bool(eva.use_label_mask))
        with torch.random.fork_rng():
            torch.manual_seed(material.seed)
            initialize_lora_eva_weights(
                model, batches, forward_fn=_forward, adapter_name=model.active_adapter,
                # Every process sees the same rows.
                gather_distributed_inputs=False, show_progress_bar=False,
            )  # fmt: skip
        # The adapter is a plain one now: whoever adds or loads another of its kind begins nothing anew.
        config.init_lora_weights, config.eva_config = True, None


class Batches:
    """The rows in batches, again and again; each with more tokens than directions are looked for."""

    def __init__(self, material: Material, device: Any, directions: int, answers_only: bool) -> None:
        self._material, self._device = material, device
        self._directions, self._answers_only = directions, answers_only
        self._given = 0

    def __len__(self) -> int:
        return MOST_BATCHES

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        sequences = map(_looked_at, self._material.sequences())
        while batch := list(islice(sequences, ROWS)):
            while self._tokens(batch) < 2 * self._directions and len(batch) < MOST_ROWS:
                more = list(islice(sequences, ROWS))
                if not more:
                    break
                batch += more
            if self._tokens(batch) < self._directions:
                if self._given:
                    return
                which = (
                    "answer tokens, and eva_config.use_label_mask looks at no others" * self._answers_only or "tokens"
                )
                raise UserError(
                    f"EVA looks for {self._directions} directions, and {len(batch)} rows have fewer {which}"
                )
            if self._given == MOST_BATCHES:
                raise UserError(
                    f"EVA found no steady directions in {MOST_BATCHES} batches; lower adapter.eva_config.tau"
                )
            self._given += 1
            yield self._material.batch(batch, self._device)

    def _tokens(self, batch: list[tuple[list[int], list[int]]]) -> int:
        return sum(
            sum(label != IGNORED for label in labels) if self._answers_only else len(ids) for ids, labels in batch
        )


def _looked_at(sequence: tuple[list[int], Any]) -> tuple[list[int], list[int]]:
    """Return ids and labels that say where to look: everywhere, where no token carries a label of its own."""
    ids, labels = sequence
    return (ids, ids) if isinstance(labels, int) or all(label == IGNORED for label in labels) else (ids, labels)


def _forward(model: Any, inputs: dict[str, torch.Tensor]) -> None:
    # Without the head: its logits, in float32, would be larger than all else.
    model.get_base_model().base_model(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
    )


make = Eva
