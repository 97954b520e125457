"""Log-probabilities of targets by a head that does not learn, on a CPU: the vocabulary in tiles, each logit made once.

What was summed so far is scaled anew where a tile holds a higher logit (online softmax: Milakov & Gimelshein 2018,
arXiv:1805.02867), the expected row of the head too. So no row of logits is ever whole, and a tile fits the caches.
"""

from __future__ import annotations

from typing import Any

import torch

from hf_peft_recipes.speed import tile_width


class TokenScores(torch.autograd.Function):
    """Log-probability, entropy and first place of each target: by torch's operations."""

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
        dtype = product_dtype(hidden)
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


def product_dtype(hidden: torch.Tensor) -> torch.dtype:
    """Return in which precision the head's products are made: autocast's, or that of the hidden states."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


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
