"""Layer-norm tuning: norms that are trained whole, in float32, and loaded into the base's precision.

Who loads them gets them rounded where the base is not float32; so they are rounded before they are saved.
"""

from collections.abc import Mapping
from typing import Any

from hf_peft_recipes.methods.step import Step


def serves(adapter: Mapping[str, Any]) -> bool:
    """Return whether the section is that of trained norms."""
    return str(adapter.get("peft_type")).upper() == "LN_TUNING"


class LnTuning(Step):
    """Rounds the norms in the end."""

    def finish(self, model: Any) -> None:
        """Give the norms the base's dtype."""
        from peft.tuners.ln_tuning.layer import LNTuningLayer

        for module in model.modules():
            if isinstance(module, LNTuningLayer):
                dtype = module.get_base_layer().weight.dtype
                for norm in module.ln_tuning_layers.values():
                    norm.to(dtype)


make = LnTuning
