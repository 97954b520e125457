"""P-tuning and prefix tuning: virtual tokens that a small network makes, which are saved without it.

PEFT writes what the network makes of its inputs, and no more (Liu et al. 2021, arXiv:2103.10385; Li and Liang 2021,
arXiv:2101.00190, section 4.3: once trained, the network is dropped). A checkpoint cannot be trained on for that reason.
"""

from collections.abc import Mapping
from typing import Any

import torch

from hf_peft_recipes.methods.step import Step


def serves(adapter: Mapping[str, Any]) -> bool:
    """Return whether the section is that of virtual tokens behind a network."""
    return str(adapter.get("peft_type")).upper() in ("P_TUNING", "PREFIX_TUNING")


class VirtualTokens(Step):
    """Drops the network in the end, as the files do."""

    def finish(self, model: Any) -> None:
        """Put in the network's place what it makes."""
        adapter = model.active_adapter
        # A caller's own model may have any adapter.
        if not serves({"peft_type": model.peft_config[adapter].peft_type.value}):
            return
        encoder, config = model.prompt_encoder[adapter], model.peft_config[adapter]
        made = model.get_prompt_embedding_to_save(adapter).to(encoder.embedding.weight.device)
        for name in [name for name, _ in encoder.named_children() if name != "embedding"]:
            delattr(encoder, name)
        encoder.embedding = torch.nn.Embedding.from_pretrained(made, freeze=False)
        config.inference_mode = True


make = VirtualTokens
