"""Numbers that are numbers: the first loss, gradient or weight that is not stops a run, and says where it came from."""

from hf_peft_recipes.finite.guard import FiniteGuard
from hf_peft_recipes.finite.spikes import LossSpikes

__all__ = ["FiniteGuard", "LossSpikes"]
