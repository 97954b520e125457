"""How a base is quantised, and which adapters it then cannot carry, found by training each of PEFT 0.21's on one.

They raise somewhere inside, or would train weights that are integers. What the table does not know, newer types above
all, is not refused: the proof of training judges it (`proof`).
"""

from collections.abc import Mapping
from typing import Any

from hf_peft_recipes.errors import UserError
from hf_peft_recipes.spec.entries import Entries

BITSANDBYTES, TORCHAO = "bitsandbytes", "torchao"
"""Who quantises, as the `quant_method` of a config.json has it."""
FLOAT8_TYPE = "Float8WeightOnlyConfig"
"""torchao's class for weights in 8-bit floats; the other classes do not train here, or were not tried."""
FOUR, EIGHT, FLOAT8 = "4 bits", "8 bits", "8-bit floats"

REFUSED: dict[tuple[str, object], tuple[str, ...]] = {
    # Their code works on the weight itself, which a quantised layer does not show.
    ("peft_type", "ADAMSS"): (FOUR, EIGHT, FLOAT8),
    ("peft_type", "DEFT"): (FOUR, FLOAT8),
    ("peft_type", "DELORA"): (FOUR, EIGHT, FLOAT8),
    ("peft_type", "FROD"): (FOUR, EIGHT, FLOAT8),
    ("peft_type", "GLORA"): (FOUR, EIGHT, FLOAT8),
    ("peft_type", "HIRA"): (FLOAT8,),
    ("peft_type", "HRA"): (FOUR, FLOAT8),
    ("peft_type", "LOHA"): (FOUR,),
    ("peft_type", "LOKR"): (FOUR,),
    ("peft_type", "OSF"): (FOUR, EIGHT, FLOAT8),
    ("peft_type", "PEANUT"): (FOUR, FLOAT8),
    ("peft_type", "PSOFT"): (FOUR, EIGHT, FLOAT8),
    ("peft_type", "SUPERTUNING"): (FOUR, EIGHT, FLOAT8),
    ("peft_type", "TINYLORA"): (FOUR, EIGHT, FLOAT8),
    # It runs, and no gradient arrives.
    ("peft_type", "UNILORA"): (FOUR, EIGHT),
    # Starts that take the weight apart.
    ("init_lora_weights", "pissa"): (FOUR, EIGHT, FLOAT8),
    ("init_lora_weights", "mica"): (FOUR, EIGHT, FLOAT8),
    ("init_lora_weights", "orthogonal"): (FOUR, EIGHT),
    ("init_lora_weights", "lora_ga"): (FOUR, EIGHT, FLOAT8),
    ("init_lora_weights", "corda"): (FOUR, EIGHT, FLOAT8),
    ("init_lora_weights", "olora"): (FLOAT8,),
    # The norm of int8 weights is asked for before they have a scale.
    ("use_dora", True): (EIGHT,),
}
"""Key and value of the adapter section to the kinds of a base on which it fails."""


def method_of(section: Mapping[str, Any] | None) -> str:
    """Return who quantises, by the section `quantization`: bitsandbytes where it says nothing."""
    return str((section or {}).get("quant_method") or BITSANDBYTES)


def section_of(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section `quantization` that the `quantization_config` of a config.json stands for.

    Args:
        told: of a base whose files are quantised, by whomever.
    """
    if told.get("quant_method") != TORCHAO:
        return {key: told[key] for key in told if key.startswith(("load_in_", "bnb_", "llm_int8_"))}
    # transformers writes torchao's class with its values, below the one key that it knows.
    found = told.get("quant_type")
    of_all = found.get("default") if isinstance(found, Mapping) else None
    return {"quant_method": TORCHAO, "quant_type": of_all.get("_type") if isinstance(of_all, Mapping) else None}


def kind_of_base(section: Mapping[str, Any] | None) -> str | None:
    """Return how the base is kept, by the section `quantization`: one of `FOUR`, `EIGHT`, `FLOAT8`; None for whole."""
    given = section or {}
    if method_of(given) == TORCHAO:
        return FLOAT8 if given.get("quant_type") == FLOAT8_TYPE else None
    return FOUR if given.get("load_in_4bit") is True else EIGHT if given.get("load_in_8bit") is True else None


def check_quantized(name: str, entries: Entries) -> None:
    """Raise a UserError where the base is quantised and the adapter is known not to train on it.

    Args:
        name: of the recipe.
        entries: all its values.
    """
    section = entries.section("quantization") or {}
    kind = kind_of_base(section)
    if method_of(section) == TORCHAO and not section.get("quant_type"):
        raise UserError(f"recipe {name!r}: quantization.quant_type is missing ({FLOAT8_TYPE})")
    for (key, refused), where in REFUSED.items():
        found = entries.value("adapter", key)
        # `pissa_niter_16` is a way to PiSSA.
        word = found.upper() if key == "peft_type" and isinstance(found, str) else str(found).partition("_niter_")[0]
        if kind in where and word == str(refused):
            origin = next(entry.origin for path, entry in entries.items() if path[0] == "quantization")
            raise UserError(
                f"recipe {name!r}: adapter.{key} {found} cannot train on a base in {kind} (from {origin}); "
                f"--quantization null takes it whole, 'qlora' trains on 4 bits"
            )
