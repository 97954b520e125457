"""How one answer is held against its reference. The same scorers serve metrics, rewards and feedback."""

from collections.abc import Callable

from hf_peft_recipes.scorers.exact import exact
from hf_peft_recipes.scorers.label import label
from hf_peft_recipes.scorers.numeric import numeric

Scorer = Callable[[str, str], float]
"""`(answer, reference)` -> 1.0 for right, 0.0 for wrong."""

SCORERS: dict[str, Scorer] = {"exact": exact, "label": label, "numeric": numeric}

__all__ = ["SCORERS", "Scorer"]
