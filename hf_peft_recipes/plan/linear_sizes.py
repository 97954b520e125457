"""One linear layer in sizes: its weight, however it is held, and what an adapter adds to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hf_peft_recipes.plan.sizes import Weight


@dataclass(slots=True)
class LinearSizes:
    """One linear layer with what an adapter adds to it."""

    inputs: int
    outputs: int
    weight: Any
    """A `Weight`, or the value that was made of one."""
    bias: Weight | None = None
    bits: int = 0
    """4 or 8 where bitsandbytes quantised the weight."""
    lora: tuple[Weight, Weight] | None = None
    dropout: bool = False
    magnitude: Weight | None = None
    """DoRA's."""
    float8: bool = False
    """Whether the weight is in 8-bit floats."""
    compute_bytes: int | None = None
    """Of the numbers that a weight in 4 bits is multiplied in, whatever the input's; autocast decides before it."""

    @property
    def quantized(self) -> bool:
        """Whether the weight is made whole for its product."""
        return bool(self.bits) or self.float8

    @property
    def factors(self) -> tuple[Weight, Weight]:
        """LoRA's A and B, where there is LoRA."""
        assert self.lora is not None
        return self.lora

    @property
    def rank(self) -> int:
        """Of LoRA."""
        return self.factors[0].elements // self.inputs

    def added(self) -> list[Weight]:
        """Return what the adapter has of its own."""
        return [*(self.lora or ()), *([] if self.magnitude is None else [self.magnitude])]
