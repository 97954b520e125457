"""What an optimizer keeps for every trained number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class States:
    """The states of an optimizer."""

    number: int
    """States of the size of the weight."""
    bits: int = 0
    """Of an element of a state: 8 where they are quantised a block, 0 for the weight's own precision."""


OPTIMIZERS = {
    "adamw_torch": States(2),
    "adamw_torch_fused": States(2),
    "adamw_hf": States(2),
    "adamw_bnb_8bit": States(2, 8),
    "adamw_8bit": States(2, 8),
    "paged_adamw_8bit": States(2, 8),
    "paged_adamw_32bit": States(2, 32),
    "paged_adamw": States(2, 32),
    "lion_32bit": States(1, 32),
    "lion_8bit": States(1, 8),
    "paged_lion_32bit": States(1, 32),
    "paged_lion_8bit": States(1, 8),
    "sgd": States(0),
    "rmsprop": States(1),
    "adagrad": States(1),
    "adafactor": States(0),
}
"""Name of transformers' `OptimizerNames` to its states; Adafactor's are a row and a column a matrix."""

_SMALL = 4096
"""Tensors with fewer elements stay in float32: `min_8bit_size` of bitsandbytes."""
_BLOCK = 256
"""Elements with one float32 maximum: blockwise quantisation, Dettmers et al. 2022, arXiv:2110.02861."""


def optimizer_bytes(name: str, elements: Sequence[int], item_bytes: int) -> int:
    """Return what the states of all trained tensors take; as AdamW where the optimizer is not in the table.

    Args:
        name: of the optimizer, `training.optim`.
        elements: of every trained tensor.
        item_bytes: of an element of a trained tensor.
    """
    states = OPTIMIZERS.get(name, States(2))
    if states.bits == 8:
        return states.number * sum(
            count + math.ceil(count / _BLOCK) * 4 if count >= _SMALL else count * 4 for count in elements
        )
    # The step count of torch's AdamW is a float32 a tensor.
    steps = 4 * len(elements) if states.number == 2 and not states.bits else 0
    return states.number * sum(elements) * (states.bits // 8 or item_bytes) + steps
