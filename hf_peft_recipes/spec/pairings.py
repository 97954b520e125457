"""Adapters and objectives that do not go together, each with its reason: told before anything is loaded."""

from hf_peft_recipes.errors import UserError
from hf_peft_recipes.spec.entries import Entries
from hf_peft_recipes.spec.objectives import OBJECTIVES

_LAST_TOKEN = (
    "virtual tokens hide the ids of a row, by which a decoder finds its last token and tells it from padding "
    "(transformers' «will not detect padding tokens in inputs_embeds»); use prefix_tuning"
)
_SHIFTED = "PEFT puts virtual tokens before a row, and no labels for them; use prefix_tuning"
_VIRTUAL = ("PROMPT_TUNING", "P_TUNING")

REFUSED: dict[tuple[str, str], str] = {
    **{(kind, head): _LAST_TOKEN for kind in _VIRTUAL for head in ("sequence_classification", "reward")},
    **{(kind, "token_classification"): _SHIFTED for kind in _VIRTUAL},
}
"""PEFT's type and head, see `spec.objectives`, to the reason why they are refused."""


def check_pairing(name: str, entries: Entries) -> None:
    """Raise a UserError where the recipe's adapter does not go with its objective.

    Args:
        name: of the recipe.
        entries: its values.
    """
    objective, kind = str(entries.value("objective")), str(entries.value("adapter", "peft_type")).upper()
    reason = REFUSED.get((kind, OBJECTIVES[objective].head))
    if reason:
        raise UserError(f"recipe {name!r}: {kind} does not go with {objective}: {reason}")
