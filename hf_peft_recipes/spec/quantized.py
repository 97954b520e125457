"""Which adapters a quantised base cannot carry, found by training each of PEFT 0.21's on one.

They raise somewhere inside, or would train weights that are integers. What the table does not know, newer types above
all, is not refused: the proof of training judges it (`proof`).
"""

from hf_peft_recipes.errors import UserError
from hf_peft_recipes.spec.entries import Entries

REFUSED: dict[tuple[str, object], tuple[int, ...]] = {
    # Their code works on the weight itself, which a quantised layer does not show.
    ("peft_type", "ADAMSS"): (4, 8),
    ("peft_type", "DEFT"): (4,),
    ("peft_type", "DELORA"): (4, 8),
    ("peft_type", "FROD"): (4, 8),
    ("peft_type", "GLORA"): (4, 8),
    ("peft_type", "HRA"): (4,),
    ("peft_type", "LOHA"): (4,),
    ("peft_type", "LOKR"): (4,),
    ("peft_type", "OSF"): (4, 8),
    ("peft_type", "PEANUT"): (4,),
    ("peft_type", "PSOFT"): (4, 8),
    ("peft_type", "SUPERTUNING"): (4, 8),
    ("peft_type", "TINYLORA"): (4, 8),
    # It runs, and no gradient arrives.
    ("peft_type", "UNILORA"): (4, 8),
    # Starts that take the weight apart.
    ("init_lora_weights", "pissa"): (4, 8),
    ("init_lora_weights", "mica"): (4, 8),
    ("init_lora_weights", "orthogonal"): (4, 8),
    ("init_lora_weights", "lora_ga"): (4, 8),
    ("init_lora_weights", "corda"): (4, 8),
    # The norm of int8 weights is asked for before they have a scale.
    ("use_dora", True): (8,),
}
"""Key and value of the adapter section to the bits of a base on which it fails."""


def check_quantized(name: str, entries: Entries) -> None:
    """Raise a UserError where the base is quantised and the adapter is known not to train on it.

    Args:
        name: of the recipe.
        entries: all its values.
    """
    bits = next((bits for bits in (4, 8) if entries.value("quantization", f"load_in_{bits}bit") is True), None)
    for (key, refused), where in REFUSED.items():
        found = entries.value("adapter", key)
        # `pissa_niter_16` is a way to PiSSA.
        word = found.upper() if key == "peft_type" and isinstance(found, str) else str(found).partition("_niter_")[0]
        if bits in where and word == str(refused):
            origin = next(entry.origin for path, entry in entries.items() if path[0] == "quantization")
            raise UserError(
                f"recipe {name!r}: adapter.{key} {found} cannot train on a base in {bits} bits (from {origin}); "
                f"--quantization null takes it whole, 'qlora' trains on 4 bits"
            )
