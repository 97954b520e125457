"""Adapters and objectives that do not go together, each with its reason: told before anything is loaded."""

from dataclasses import dataclass

from hf_peft_recipes.errors import UserError
from hf_peft_recipes.spec.entries import Entries
from hf_peft_recipes.spec.objectives import OBJECTIVES


@dataclass(frozen=True)
class Refusal:
    """What does not go together, and why."""

    key: str
    """Of the adapter section."""
    values: tuple[str, ...]
    """That are refused."""
    on: tuple[str, ...]
    """Objectives, or heads of models, see `spec.objectives`."""
    reason: str


_VIRTUAL = ("PROMPT_TUNING", "P_TUNING")
_SINGLE = ("ADALORA", "TRAINABLE_TOKENS")

REFUSED = (
    Refusal(
        "peft_type", _VIRTUAL, ("sequence_classification", "reward"),
        "virtual tokens hide the ids of a row, by which a decoder finds its last token and tells it from padding "
        "(transformers: «will not detect padding tokens in inputs_embeds»); prefix_tuning does not",
    ),
    Refusal(
        "peft_type", _VIRTUAL, ("token_classification",),
        "PEFT puts virtual tokens before a row, and no labels for them; prefix_tuning has none in the row",
    ),
    Refusal(
        "peft_type", _VIRTUAL, ("cpo", "orpo"),
        "upstream's trainer takes logits and labels to be of one length, and virtual tokens come without labels; dpo, "
        "and prefix_tuning, do without",
    ),
    Refusal(
        "peft_type", ("TRAINABLE_TOKENS",), ("sequence_classification", "token_classification", "reward"),
        "a classifier's head is trained and saved with the adapter, and PEFT has no room for it in one of this type",
    ),
    Refusal(
        "peft_type", _SINGLE, ("dpo", "kto", "rloo"),
        "it compares with a copy of the adapter, and PEFT has no room for a second one of this type; orpo, cpo, "
        "simpo and grpo need none",
    ),
    Refusal(
        "init_lora_weights", ("lora_ga",), ("reward", "grpo", "rloo", "seq2seq_lm"),
        "it begins along the gradient of a loss on tokens, which decoders and classifiers give; pissa and olora need "
        "none",
    ),
    Refusal(
        "init_lora_weights", ("eva", "corda"), ("seq2seq_lm",),
        "it looks at what goes into each layer of one stack, and an encoder with a decoder are two; pissa and olora "
        "look at weights alone",
    ),
)  # fmt: skip


def check_pairing(name: str, entries: Entries) -> None:
    """Raise a UserError where the recipe's adapter does not go with its objective.

    Args:
        name: of the recipe.
        entries: its values.
    """
    objective = str(entries.value("objective"))
    asked = {objective, OBJECTIVES[objective].head}
    for refusal in REFUSED:
        found = entries.value("adapter", refusal.key)
        known = str(found).upper() if refusal.key == "peft_type" else str(found)
        if known in refusal.values and asked & set(refusal.on):
            raise UserError(
                f"recipe {name!r}: adapter.{refusal.key} {found} does not go with {objective}: {refusal.reason}"
            )
