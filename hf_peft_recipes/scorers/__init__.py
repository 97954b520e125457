"""How one answer is held against its reference. The same scorers serve metrics, rewards and feedback."""

from collections.abc import Callable

from hf_peft_recipes.scorers.exact import exact
from hf_peft_recipes.scorers.format import format
from hf_peft_recipes.scorers.json_schema import json_schema
from hf_peft_recipes.scorers.label import label
from hf_peft_recipes.scorers.length import length
from hf_peft_recipes.scorers.numeric import numeric
from hf_peft_recipes.scorers.regex import regex
from hf_peft_recipes.scorers.unit_tests import unit_tests

Scorer = Callable[..., float]
"""`(answer, reference)` -> 1.0 for right, 0.0 for wrong, or a degree between; what can be chosen is keyword-only."""

SCORERS: dict[str, Scorer] = {
    "exact": exact,
    "format": format,
    "json_schema": json_schema,
    "label": label,
    "length": length,
    "numeric": numeric,
    "regex": regex,
    "unit_tests": unit_tests,
}

__all__ = ["SCORERS", "Scorer"]
