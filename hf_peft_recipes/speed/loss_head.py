"""The loss of a frozen head on the tokens that carry it, tile by tile, its gradient made on the way forward.

TRL 1.16 never holds the full logits either, but where there is no Triton it scores masked tokens too, holds a few
thousand tokens' float32 logits several times over, and makes the logits once more on the way back.
"""

import functools
import inspect
from typing import Any

import torch
from trl.trainer import utils as trl_utils

TILE, NARROWEST = 2**21, 256
"""Logits at a time, and the fewest of a token. On two cores with a hidden size of 576, 470 and 940 tokens took least at
about 2 million: a quarter of it makes products slow, four times as many no longer fit the caches."""
_ALIGNED = 64
"""Widths are multiples of it: the kernels of other products are made anew and slower."""

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
    row. It needs nothing from later in the graph but one factor, so it is made on the way forward. The vocabulary is
    read in tiles, and what was summed so far is scaled anew where a tile holds a higher logit (online softmax:
    Milakov & Gimelshein 2018, arXiv:1805.02867): each logit is made once, and no row of them is ever whole.
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
        scores = _Scores(hidden.to(dtype), targets, ctx.needs_input_grad[0])
        width = tile_width(len(hidden), len(weight))
        # Fresh memory for every tile would cost more than the arithmetic: the system zeroes each page of it.
        logits, shifted, p = (hidden.new_empty(len(hidden) * width, dtype=d) for d in (dtype, *[scores.precise] * 2))
        for start in range(0, len(weight), width):
            rows = weight[start : start + width].to(dtype)
            shape = (len(hidden), len(rows))
            scores.add(rows, start, *(buffer[: shape[0] * shape[1]].view(shape) for buffer in (logits, shifted, p)))
        log_total = scores.total.log()
        log_probs, entropy = scores.aimed - scores.top - log_total, log_total - scores.weighted / scores.total
        gradient = None
        if scores.expected is not None:
            gradient = (weight[targets] - scores.expected.div_(scores.total[:, None])).to(hidden.dtype)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(entropy, scores.is_top1)
        return log_probs, entropy, scores.is_top1

    @staticmethod
    def backward(ctx: Any, by_log_probs: torch.Tensor, *_: Any) -> tuple[torch.Tensor, None, None]:
        """Return the gradient by the hidden states, given that by the log-probabilities."""
        (gradient,) = ctx.saved_tensors
        return gradient * by_log_probs[:, None].to(gradient.dtype), None, None


def tile_width(tokens: int, vocabulary: int) -> int:
    """Return how many entries of the vocabulary are read at a time for so many tokens: tiles of about one width."""
    tiles = -(-vocabulary // max(NARROWEST, TILE // max(1, tokens)))
    return -(-vocabulary // tiles // _ALIGNED) * _ALIGNED


class _Scores:
    """What is known of each token's logits, those that were read so far."""

    def __init__(self, hidden: torch.Tensor, targets: torch.Tensor, learns: bool) -> None:
        self._hidden, self._targets = hidden, targets
        self.precise = torch.promote_types(hidden.dtype, torch.float32)
        self.top = hidden.new_full((len(hidden),), torch.finfo(self.precise).min, dtype=self.precise)
        """The highest logit."""
        self.aimed, self.total, self.weighted = (torch.zeros_like(self.top) for _ in range(3))
        """The target's logit; the sums of e^(logit - top), and of that times (logit - top)."""
        self.is_top1 = torch.zeros_like(self.top, dtype=torch.bool)
        """Whether the target's is the highest, and of equal ones the first, as TRL has it."""
        self.expected = torch.zeros_like(hidden, dtype=self.precise) if learns else None
        """The sum of the head's rows, each times e^(logit - top)."""

    def add(self, rows: torch.Tensor, start: int, logits: torch.Tensor, shifted: torch.Tensor, p: torch.Tensor) -> None:
        """Read the logits of some of the head's rows, the first of which stands at `start`; the rest is to write in."""
        shifted.copy_(torch.mm(self._hidden, rows.t(), out=logits))
        highest, first = shifted.max(-1)
        at = self._targets - start
        here = at.clamp(0, len(rows) - 1)
        self.aimed = torch.where(at == here, shifted.gather(1, here[:, None])[:, 0], self.aimed)
        self.is_top1 = torch.where(highest > self.top, at == first, self.is_top1)
        top = torch.maximum(self.top, highest)
        fell, kept = self.top - top, (self.top - top).exp()
        torch.exp(shifted.sub_(top[:, None]), out=p)
        self.weighted = kept * (self.weighted + fell * self.total) + shifted.mul_(p).sum(-1)
        self.total = kept * self.total + p.sum(-1)
        if self.expected is not None:
            self.expected.mul_(kept[:, None]).add_(torch.mm(logits.copy_(p), rows))
        self.top = top


def _is_plain(base: Any) -> bool:
    head, config = base.get_output_embeddings(), base.config.get_text_config()
    changes = any(getattr(config, name, None) not in (None, 1, 1.0) for name in _LOGIT_CHANGES)
    experts = bool(getattr(config, "output_router_logits", False))
    frozen = type(head) is torch.nn.Linear and head.bias is None and not head.weight.requires_grad
    return frozen and not changes and not experts and hasattr(trl_utils, "FusedCausalLMOutput")
