"""What evaluation takes: the loss that the Trainer watches; rows that are scored and answered before and after."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from hf_peft_recipes.plan.held_out import HeldOut
from hf_peft_recipes.plan.job import Job
from hf_peft_recipes.plan.shapes import Shape
from hf_peft_recipes.plan.sizes import FLOAT32
from hf_peft_recipes.plan.step import walk_evaluation, walk_validation

LOGIT_BYTES, BATCH_TOKENS = 512 * 2**20, 16_384
"""What likelihoods.py lets the float32 logits of a batch take, and how many tokens it lets in at the most."""
GPU_FRAGMENTATION = 0.05
"""Of what lives for a step only: rounding to 512 bytes and segments of torch's caching allocator; not measured here."""
_ROWS, _ANSWERED = 1000, 32
"""What the recipe's `max_rows` and `batch_size` are where they say nothing."""


@dataclass(frozen=True)
class Evaluation:
    """What it takes beyond weights and optimizer."""

    size_bytes: int = 0
    """At its peak."""
    batch_kinds: int = 0
    """Batches of different widths, for each of which a CPU makes kernels of its own."""


def unknown_rows(job: Job) -> HeldOut:
    """Return the worst that there may be: rows as long as training's, all their tokens with loss, answers asked for."""
    asked = job.evaluation.get("max_rows")
    rows = _ROWS if asked is None else int(asked)
    return HeldOut(((job.length, 0),) * rows, (job.length,) * rows, 0, (_ROWS, job.length))


def plan_evaluation(job: Job, shape: Shape) -> Evaluation:
    """Return what the largest of evaluation's three parts takes. Gradients are gone by then.

    Args:
        job: that evaluates, on the rows of its `held_out`, or on those of `unknown_rows`.
        shape: of its model.
    """
    held, share = job.held_out or unknown_rows(job), 0.0 if job.on_cpu else GPU_FRAGMENTATION
    sizes = [0]
    rows, length = held.watched
    if rows and job.arguments.get("eval_strategy") not in (None, "no", False):
        batch = min(rows, int(job.arguments.get("per_device_eval_batch_size") or 8))
        sizes.append(walk_validation(replace(job, batch=batch, length=length), shape))
    scored = set(_scored_batches(held.scored, min(BATCH_TOKENS, LOGIT_BYTES // (FLOAT32 * shape.vocabulary))))
    if scored:
        most_tokens = max(scored, key=lambda batch: batch[0] * batch[1])
        most_logits = max(scored, key=lambda batch: batch[0] * batch[2])
        for number, width, positions in {most_tokens, most_logits}:
            sizes.append(_alone(job, shape, number, width, number * positions))
    answered = set(_answered_batches(held.prompts, int(job.evaluation.get("batch_size") or _ANSWERED)))
    if answered:
        number, width = max(answered, key=lambda batch: batch[0] * batch[1])
        cache = number * (width + held.answer) * shape.layers * 2 * shape.key_width * job.compute_bytes
        sizes.append(cache + _alone(job, shape, number, width, number))
    widths = {width for _, width, _ in scored}, {width for _, width in answered}
    return Evaluation(int((1 + share) * max(sizes)), sum(map(len, widths)))


def _scored_batches(rows: Sequence[tuple[int, int]], most: int) -> Iterator[tuple[int, int, int]]:
    """Yield rows, tokens a row and positions with logits of every batch, as `likelihoods.padded_batches` makes them."""
    left = sorted(rows, reverse=True)
    while left:
        width = left[0][0]
        number = max(1, most // max(1, width))
        batch, left = left[:number], left[number:]
        yield len(batch), width, width - min(first for _, first in batch)


def _answered_batches(prompts: Sequence[int], size: int) -> Iterator[tuple[int, int]]:
    """Yield prompts and tokens a prompt of every batch, as `generation.generate` makes them."""
    order = sorted(prompts)
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        yield len(batch), batch[-1]


def _alone(job: Job, shape: Shape, rows: int, width: int, scored: int) -> int:
    """Return what a pass over padded rows takes, `scored` of their tokens with logits: nothing is packed."""
    walked = walk_evaluation(replace(job, batch=rows, length=width, packed=False), shape, scored)
    # A mask of every row's padding, and its numbers in one layer.
    mask = 0 if job.flash else rows * width**2 * (1 + job.compute_bytes)
    return walked + mask
