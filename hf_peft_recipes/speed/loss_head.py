"""The loss of a frozen head on the tokens that carry it, a few tokens at a time, its gradient made on the way forward.

TRL 1.16 never holds the full logits either, but where there is no Triton it scores masked tokens too, holds a few
thousand tokens' float32 logits several times over, and makes the logits once more on the way back.
"""

import functools
import inspect
from typing import Any

import torch
from trl.trainer import utils as trl_utils

TOKENS_AT_A_TIME = 128
"""Measured on two cores with a vocabulary of 49,152: 64 reads the head too often, 512 no longer fits the caches."""

# Models that scale or cap their logits keep to TRL's own head.
_LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


def install(model: Any) -> bool:
    """Let TRL's fused head of the model skip masked tokens; return whether it does.

    That takes a frozen, unscaled linear head, as after LoRA on `all-linear`; a head that learns needs a gradient of
    its own.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    upstream = vars(base).get("forward")
    fused = upstream is not None and "fused_lm_head" in inspect.signature(upstream, follow_wrapped=False).parameters
    if not fused or not _is_plain(base):
        return False

    # Generation looks up in the signature what the model takes.
    @functools.wraps(upstream)
    def forward(*inputs: Any, **keywords: Any) -> Any:
        if not keywords.get("fused_lm_head") or keywords.get("shift_labels") is not None:
            return upstream(*inputs, **keywords)
        for name in ("fused_lm_head", "shift_labels", "num_items_in_batch"):
            keywords.pop(name, None)
        labels = keywords.pop("labels")[:, 1:]
        hidden = base.base_model(*inputs, **{**keywords, "use_cache": False}).last_hidden_state[:, :-1]
        mask = labels != -100
        scores = TokenScores.apply(hidden[mask], base.get_output_embeddings().weight, labels[mask])
        # Scattering keeps the output tied to the model where no label is valid.
        log_probs, entropy, is_top1 = (score.new_zeros(mask.shape).masked_scatter(mask, score) for score in scores)
        return trl_utils.FusedCausalLMOutput(
            log_probs=log_probs, entropy=entropy, is_top1=is_top1, label_mask=mask, loss=-log_probs.sum() / mask.sum()
        )

    base.forward = forward
    return True


class TokenScores(torch.autograd.Function):
    """Log-probability, entropy and first place of each target, for a head that does not learn.

    The gradient of a target's log-probability by its hidden state is the head's row of the target less the expected
    row. It needs nothing from later in the graph but one factor, so it is made while the probabilities are at hand.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return, for each token, the target's log-probability, the entropy in nats, and whether it is the likeliest.

        Args:
            ctx: what backward finds again.
            hidden: of shape (tokens, hidden size).
            weight: of shape (vocabulary, hidden size).
            targets: token ids of shape (tokens,).
        """
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        weight = weight.to(dtype)
        precise = torch.promote_types(dtype, torch.float32)
        log_probs = hidden.new_empty(len(hidden), dtype=precise)
        entropy, is_top1 = torch.empty_like(log_probs), torch.empty_like(log_probs, dtype=torch.bool)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        # Fresh memory for every chunk would cost more than the arithmetic: the system zeroes each page of it.
        width = (min(len(hidden), TOKENS_AT_A_TIME), len(weight))
        logits_buffer = hidden.new_empty(width, dtype=dtype)
        log_p_buffer, p_buffer = (hidden.new_empty(width, dtype=precise) for _ in range(2))
        for start in range(0, len(hidden), TOKENS_AT_A_TIME):
            some = slice(start, start + TOKENS_AT_A_TIME)
            target = targets[some, None]
            logits, log_p, p = (buffer[: len(target)] for buffer in (logits_buffer, log_p_buffer, p_buffer))
            torch.mm(hidden[some].to(dtype), weight.T, out=logits)
            torch.log_softmax(p.copy_(logits), -1, out=log_p)
            torch.exp(log_p, out=p)
            log_probs[some] = log_p.gather(-1, target)[:, 0]
            is_top1[some] = log_p.argmax(-1) == targets[some]
            entropy[some] = -torch.linalg.vecdot(p, log_p)
            if gradient is not None:
                # The head's row of the target less the expected row, as one product.
                p.neg_().scatter_add_(-1, target, p.new_ones(target.shape))
                gradient[some] = logits.copy_(p) @ weight
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(entropy, is_top1)
        return log_probs, entropy, is_top1

    @staticmethod
    def backward(ctx: Any, by_log_probs: torch.Tensor, *_: Any) -> tuple[torch.Tensor, None, None]:
        """Return the gradient by the hidden states, given that by the log-probabilities."""
        (gradient,) = ctx.saved_tensors
        return gradient * by_log_probs[:, None].to(gradient.dtype), None, None


def _is_plain(base: Any) -> bool:
    head, config = base.get_output_embeddings(), base.config.get_text_config()
    changes = any(getattr(config, name, None) not in (None, 1, 1.0) for name in _LOGIT_CHANGES)
    experts = bool(getattr(config, "output_router_logits", False))
    frozen = type(head) is torch.nn.Linear and head.bias is None and not head.weight.requires_grad
    return frozen and not changes and not experts and hasattr(trl_utils, "FusedCausalLMOutput")
