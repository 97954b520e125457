"""The loss of a frozen head on the tokens that carry it, tile by tile, its gradient made on the way forward.

TRL 1.16 never holds the full logits either, but makes them once more on the way back. Where there is no Triton it
scores masked tokens too, and holds a few thousand tokens' float32 logits several times over.
"""

import functools
import inspect
from typing import Any

import torch
from trl.trainer import utils as trl_utils

from hf_peft_recipes.speed import Taken, sort_out
from hf_peft_recipes.speed.head_scores import SCORES, knows_kernels, score

# Models that scale or cap their logits keep to TRL's own head.
_LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


def install(model: Any) -> Taken:
    """Let TRL's fused head of the model skip masked tokens.

    That takes a frozen, unscaled linear head, as after LoRA on `all-linear`; a head that learns needs a gradient of
    its own.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    upstream = vars(base).get("forward")
    if reason := _why_not(base, upstream):
        return sort_out([reason])

    # Generation looks up in the signature what the model takes.
    @functools.wraps(upstream)
    def forward(*inputs: Any, **keywords: Any) -> Any:
        if not keywords.get("fused_lm_head") or keywords.get("shift_labels") is not None:
            return upstream(*inputs, **keywords)
        for name in ("fused_lm_head", "shift_labels", "num_items_in_batch"):
            keywords.pop(name, None)
        # A model that is spread over devices begins on another one than it ends on.
        labels = keywords.pop("labels").to(_device(base))
        mask = labels[:, 1:] != -100
        # Of all positions, the last of a row predicts nothing. Asked before the layers: a GPU is waited for here.
        chosen = torch.nn.functional.pad(mask, (0, 1)).flatten().nonzero()[:, 0]
        hidden = base.base_model(*inputs, **{**keywords, "use_cache": False}).last_hidden_state.to(_device(base))
        rows = hidden.flatten(0, 1).index_select(0, chosen)
        scores = score(rows, base.get_output_embeddings().weight, labels.flatten().index_select(0, chosen + 1))
        # Putting them into place keeps the output tied to the model where no label is valid.
        log_probs, entropy, is_top1 = (
            one.new_zeros(labels.numel()).index_copy(0, chosen, one).view_as(labels)[:, :-1] for one in scores
        )
        loss = -log_probs.sum() / mask.sum().clamp(min=1)
        return trl_utils.FusedCausalLMOutput(
            log_probs=log_probs, entropy=entropy, is_top1=is_top1, label_mask=mask, loss=loss
        )

    base.forward = forward
    return Taken(1)


def _device(base: Any) -> torch.device:
    device: torch.device = base.get_output_embeddings().weight.device
    return device


def _why_not(base: Any, upstream: Any) -> str | None:
    if upstream is None or "fused_lm_head" not in inspect.signature(upstream, follow_wrapped=False).parameters:
        return "TRL joins no head and loss here"
    head, config = base.get_output_embeddings(), base.config.get_text_config()
    if type(head) is not torch.nn.Linear or head.bias is not None:
        return f"the head is a {type(head).__name__} or has a bias"
    if head.weight.requires_grad:
        return "the head learns"
    if any(getattr(config, name, None) not in (None, 1, 1.0) for name in _LOGIT_CHANGES):
        return "logits are scaled or capped"
    if getattr(config, "output_router_logits", False):
        return "routers have a loss of their own"
    if not hasattr(trl_utils, "FusedCausalLMOutput") or (_device(base).type in SCORES and not knows_kernels()):
        return "another version of TRL"
    return None
