"""The loss of a step in sizes: by our head, by TRL's in Triton, or by TRL's in torch."""

from __future__ import annotations

from collections.abc import Callable

from hf_peft_recipes.plan.linears import Walk
from hf_peft_recipes.plan.sizes import FLOAT32, Value, Weight
from hf_peft_recipes.plan.weights import Model
from hf_peft_recipes.speed import head_tokens, tile_width

TILE_TOKENS, TILE_WIDTH = 4096, 32768
"""Of TRL's head at a time: `trl/kernels/chunked_logprob.py` and `_CHUNKED_LOGPROB_CHUNK_SIZE`."""

_SUMS = 8
"""Numbers that our loss head keeps of each token on a GPU, `speed/head_scores.py`."""


def walk_loss(walk: Walk, model: Model, hidden: Value) -> Value:
    """Return the loss by the head that the run takes: ours, TRL's in Triton, or TRL's in torch."""
    job, shape, ledger = model.job, model.shape, walk.ledger
    whole, itemsize, width = hidden.elements, hidden.itemsize, shape.vocabulary
    compute = job.autocast_bytes or itemsize
    ours, triton = job.own_head, job.device.kind == "cuda"
    tokens = max(1, int(job.tokens * job.supervised)) if ours or triton else job.tokens
    picked = tokens * shape.hidden
    shifted = walk.view(hidden)
    del hidden
    # Ours and Triton's gather the tokens with loss; without them the shifted rows are copied whole.
    chosen = walk.make(picked, itemsize, [shifted], lambda g: [walk.fresh(whole, itemsize)])
    del shifted
    head = model.head.weight
    if ours:
        gradient = walk.fresh(picked, itemsize)
        with ledger.making("logits"):
            if triton:
                some = min(tokens, head_tokens(width))
                cast = [walk.fresh(head.elements, compute)] if head.itemsize != compute else []
                # TRL's kernels work in place; the product with the head is made in float32 first.
                buffers = [*cast, walk.fresh(some * width, compute), walk.fresh(_SUMS * tokens, FLOAT32)]
                ledger.spike("logits", some * shape.hidden * FLOAT32)
                del buffers, cast
            else:
                _walk_tiles(walk, tokens, picked, head, compute)
        return walk.make(tokens, FLOAT32, [chosen], _gradient_only(walk, gradient), [gradient])
    used = min(tokens, TILE_TOKENS) * min(width, TILE_WIDTH)
    # A row of the tile is as wide for a small vocabulary; a host holds the pages that are written to.
    tile = used if job.on_cpu else min(tokens, TILE_TOKENS) * TILE_WIDTH
    # What TRL's tile functions hold at once beside the tile, in bytes an element; Triton works in place.
    forward_bytes, backward_bytes = (0, 0) if triton else (13, 29)
    lowered = min(width, TILE_WIDTH) * shape.hidden * compute if head.itemsize != compute else 0
    with ledger.making("logits"):
        buffer = walk.fresh(tile, compute)
        ledger.spike("logits", used * forward_bytes + lowered)
        del buffer
    trains = head.node is not None

    def backward(_: Value, kept: Value = chosen) -> list[Value | None]:
        with ledger.making("logits"):
            by_hidden = walk.fresh(picked, FLOAT32)
            by_weight = walk.fresh(head.elements, FLOAT32) if trains else None
            buffer = walk.fresh(tile, compute)
            product = 0 if triton else used * FLOAT32 + picked * FLOAT32
            ledger.spike("logits", max(used * backward_bytes, product) + lowered)
            del buffer
        made = walk.cast(by_hidden, itemsize)
        if by_weight is not None:
            by_weight = walk.cast(by_weight, head.itemsize)
        made.node = None
        return [made, by_weight]

    return walk.make(tokens, FLOAT32, [chosen, head], backward, [chosen])


def _walk_tiles(walk: Walk, tokens: int, picked: int, head: Weight, compute: int) -> None:
    """Walk the head's way forward on a CPU, `speed/token_scores.py`."""
    hidden = picked // tokens
    vocabulary = head.elements // hidden
    width = tile_width(tokens, vocabulary)
    cast = [walk.fresh(width * hidden, compute)] if head.itemsize != compute else []
    buffers = [*cast, *(walk.fresh(tokens * width, itemsize) for itemsize in (compute, FLOAT32, FLOAT32))]
    expected = walk.fresh(picked, FLOAT32)
    walk.ledger.spike("logits", picked * compute)
    del buffers, cast
    # The target's rows, and the expected ones as they are.
    walk.ledger.spike("logits", picked * (FLOAT32 + compute))
    del expected


def _gradient_only(walk: Walk, gradient: Value) -> Callable[[Value], list[Value | None]]:
    """Return the way back of our head, which made the gradient on the way forward and holds it until then."""
    return lambda _: [walk.fresh(gradient.elements, gradient.itemsize)]
