"""Log-probabilities of targets by a head that does not learn, their gradient made on the way forward.

The gradient of a target's log-probability by its hidden state is the head's row of the target less the expected row.
It needs nothing from later in the graph but one factor, so it is made while the probabilities are at hand: two products
with the head a step, where making the logits anew on the way back takes three.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from trl.kernels import chunked_logprob

from hf_peft_recipes.speed import head_tokens
from hf_peft_recipes.speed.token_scores import TokenScores, product_dtype

_SUMS = ("running_max", "sum_exp", "x_sum_exp", "sq_sum_exp", "z_sum", "max_before_target", "target_logit")
_UNCHANGED: dict[str, Any] = {"logit_scale": 1.0, "softcap": 1.0, "inv_t": 1.0, "HAS_SOFTCAP": False}
_WANTED = {"HAS_ENTROPY": True, "HAS_LOG_SUM_SQ_PROBS": False, "HAS_MEAN_LOGITS": False, "HAS_IS_TOP1": True}
_FACTORS = {"HAS_LOGPROB_GRAD": True, "HAS_ENTROPY_GRAD": False}
_TILE, _PART = ("tile", "tile_stride", "targets"), ("vocab_start", "n_cols")
_TAKEN = {
    "_forward_tile": (*_TILE, *_SUMS, *_PART, *_UNCHANGED, *_WANTED, "BLOCK_SIZE"),
    "_backward_tile": (
        *_TILE, "log_z", "entropy", "grad_logprobs", "grad_entropy", *_PART, *_UNCHANGED, *_FACTORS, "BLOCK_SIZE",
    ),
}  # fmt: skip
"""What TRL's kernels take, in their order (1.16); each stands beside one in torch that takes the same."""


class TileScores(TokenScores):
    """What `TokenScores` does, by TRL's kernels, which turn a tile of logits into its gradient in place."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return what `TokenScores` does.

        Args:
            ctx: what backward finds again.
            hidden: of shape (tokens, hidden size).
            weight: of shape (vocabulary, hidden size).
            targets: token ids of shape (tokens,).
        """
        dtype, tokens, vocabulary = product_dtype(hidden), len(hidden), len(weight)
        weight, at_a_time = weight.to(dtype), head_tokens(vocabulary)
        sums = {name: hidden.new_zeros(tokens, dtype=torch.float32) for name in _SUMS}
        for name in ("running_max", "max_before_target"):
            sums[name].fill_(-torch.inf)
        log_z = torch.empty_like(sums["sum_exp"])
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        one = hidden.new_ones(min(tokens, at_a_time), dtype=torch.float32)
        buffer = hidden.new_empty(len(one), vocabulary, dtype=dtype)
        options = {**_UNCHANGED, "BLOCK_SIZE": chunked_logprob._BLOCK_SIZE}
        blocks = -(-vocabulary // chunked_logprob._BLOCK_SIZE)
        triton = chunked_logprob._use_triton(hidden.device)
        for start in range(0, tokens, at_a_time):
            some = slice(start, start + at_a_time)
            target = targets[some]
            number = len(target)
            tile = torch.mm(hidden[some].to(dtype), weight.t(), out=buffer[:number])
            given = (tile, tile.stride(0), target)
            forth = chunked_logprob._forward_kernel[(number,)] if triton else chunked_logprob._forward_tile
            forth(*given, *(sums[name][some] for name in _SUMS), 0, vocabulary, **options, **_WANTED)
            log_z[some] = sums["running_max"][some] + sums["sum_exp"][some].log()
            if gradient is None:
                continue
            back = chunked_logprob._backward_kernel[(number, blocks)] if triton else chunked_logprob._backward_tile
            factors = (log_z[some], log_z[some], one[:number], one[:number])
            back(*given, *factors, 0, vocabulary, **options, **_FACTORS)
            gradient[some] = _product(tile, weight)
        entropy = log_z - sums["x_sum_exp"] / sums["sum_exp"]
        target_logit = sums["target_logit"]
        is_top1 = (target_logit >= sums["running_max"]) & (target_logit > sums["max_before_target"])
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(entropy, is_top1)
        return target_logit - log_z, entropy, is_top1


SCORES: dict[str, Any] = {"cuda": TileScores}
"""Kind of device to what scores there; elsewhere `TokenScores`."""


# A compiler would look into the kernels, and find nothing to join them with.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def score(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> Any:
    """Return each target's log-probability, entropy and first place, as `TokenScores` does."""
    return SCORES.get(hidden.device.type, TokenScores).apply(hidden, weight, targets)


def knows_kernels() -> bool:
    """Return whether TRL's kernels are those that are called here."""
    if not hasattr(chunked_logprob, "_use_triton") or not hasattr(chunked_logprob, "_BLOCK_SIZE"):
        return False
    found = {name: getattr(chunked_logprob, name, None) for name in _TAKEN}
    return all(
        one is not None and tuple(inspect.signature(one).parameters) == _TAKEN[name] for name, one in found.items()
    )


def _product(tile: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    # So long a sum is split among blocks, whose parts would be rounded.
    if tile.device.type == "cuda" and tile.dtype.itemsize == 2:
        return torch.mm(tile, weight, out_dtype=torch.float32)
    return tile @ weight
