"""One training step walked through in sizes: the layers of `transformers/models/*/modeling_*.py`, TRL's loss, LoRA.

Instant and without torch; `trace` runs the real code on the meta device, and a test holds the two together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hf_peft_recipes.plan.job import Job
from hf_peft_recipes.plan.layers import walk_backbone
from hf_peft_recipes.plan.linears import Walk
from hf_peft_recipes.plan.loss import walk_loss
from hf_peft_recipes.plan.operations import INDEX
from hf_peft_recipes.plan.optimizers import optimizer_bytes
from hf_peft_recipes.plan.shapes import Shape
from hf_peft_recipes.plan.sizes import FLOAT32, Ledger, Stage, Value, Weight, run_backward
from hf_peft_recipes.plan.weights import Model


@dataclass(frozen=True)
class StepSizes:
    """What one step takes."""

    peak_bytes: int
    parts: Counter[str]
    """Bytes by part, at the peak."""
    saved_bytes: int
    """What autograd holds when the way back begins."""
    pass_bytes: int
    """What it would hold then without checkpointing."""
    made_bytes: int
    """All that a micro-batch's operations make."""
    largest_quantized: int
    """Numbers in the largest weight that is made whole for a product."""
    gradient_bytes: int
    largest_layer: int
    """Numbers in the largest layer, head or embedding."""
    trained: tuple[int, ...] = ()
    """Numbers in every trained tensor."""

    def under(self, optimizer: str) -> StepSizes:
        """Return the same step with the states of another optimizer, which are there from its beginning to its end.

        Args:
            optimizer: its name, `training.optim`.
        """
        item_bytes = self.gradient_bytes // max(1, sum(self.trained))
        states = optimizer_bytes(optimizer, self.trained, item_bytes)
        parts = Counter({**self.parts, "optimizer": states})
        return replace(self, peak_bytes=self.peak_bytes + states - self.parts["optimizer"], parts=parts)


FEW_LAYERS = 3
"""A first layer, one between others, and a last one."""


def walk_step(job: Job, shape: Shape) -> StepSizes:
    """Return what one training step takes on one device that holds the whole model.

    With accumulation it is a micro-batch after the first, which finds the gradients of those before; the optimizer's
    states are there, as from the second step on. Where all layers are alike, few are walked through, and the others
    take what the one between its neighbours takes: `walk_whole_step` comes to the same.
    """
    if shape.layers <= FEW_LAYERS or len(shape.layer_kinds()) > 1 or job.tells_layers_apart:
        return walk_whole_step(job, shape)
    return _repeated(job, shape).under(job.optimizer)


def walk_whole_step(job: Job, shape: Shape) -> StepSizes:
    """Return what `walk_step` returns, every layer walked through."""
    return _walk(job, shape)[0].under(job.optimizer)


def _repeated(job: Job, shape: Shape) -> StepSizes:
    """Return the sizes of a step without an optimizer, those of most layers from the one in the middle of few.

    What a layer adds is the same at every place, so each stage's peak grows along a line with the number of layers,
    and the highest one is at an end: in the first layer, in the last, or in a neighbour of these.
    """
    more, few = shape.layers - FEW_LAYERS, replace(shape, layers=FEW_LAYERS)
    sizes, ledger = _walk(job, few)
    fewer = Model(job, replace(few, layers=FEW_LAYERS - 1))
    trained = tuple((Counter(sizes.trained) - Counter(fewer.trained)).elements())
    held = _less(Model(job, few).bytes, fewer.bytes)
    layer_gradients = sum(trained) * fewer.trained_item_bytes
    gradients = Counter(gradients=layer_gradients)
    if job.accumulation > 1:
        # They are there from the beginning.
        held, gradients = _sum(held, gradients), Counter()
    stages = ledger.stages
    before, forward, head, turn, back, below = stages[0], stages[1:4], stages[4], stages[5], stages[6:9], stages[9:]
    kept, returned = _between(forward[1], forward[2]), _between(back[1], back[2])
    # Less than was kept when the way forward ended: autocast's casts go before the way back begins.
    saved = _sum(_less(gradients, returned), {"activations": forward[1].kept_bytes})
    forth, reached = _sum(held, kept), _sum(held, saved)
    left = _sum(reached, returned)
    candidates = [
        (before, held), (forward[0], held), (forward[2], forth), (head, forth), (turn, reached), (back[0], reached),
        (back[1], reached), (back[1], left), (back[2], left), *((stage, left) for stage in below),
    ]  # fmt: skip
    peak, added = max(candidates, key=lambda pair: pair[0].peak_bytes + more * pair[1].total())
    made = sum(after.start_made_bytes - at.start_made_bytes for at, after in (forward[1:], back[1:]))
    passed = sizes.pass_bytes + more * kept["activations"]
    if job.checkpointing and job.on_cpu:
        passed = _repeated(replace(job, checkpointing=False), shape).saved_bytes
    return replace(
        sizes,
        peak_bytes=peak.peak_bytes + more * added.total(),
        parts=+_sum(peak.peak_parts, {part: more * size for part, size in added.items()}),
        saved_bytes=sizes.saved_bytes + more * kept["activations"],
        pass_bytes=passed,
        made_bytes=sizes.made_bytes + more * made,
        gradient_bytes=sizes.gradient_bytes + more * layer_gradients,
        trained=sizes.trained + more * trained,
    )


def _between(at: Stage, after: Stage) -> Counter[str]:
    """Return what has been added from the beginning of one stage to that of another, by part."""
    return _less(after.start_parts, at.start_parts)


def _less(one: Mapping[str, int], other: Mapping[str, int]) -> Counter[str]:
    left = Counter(one)
    left.subtract(other)
    return left


def _sum(one: Mapping[str, int], other: Mapping[str, int]) -> Counter[str]:
    total = Counter(one)
    total.update(other)
    return total


def _walk(job: Job, shape: Shape) -> tuple[StepSizes, Ledger]:
    """Return the sizes of a step without an optimizer, and the ledger."""
    model, ledger = Model(job, shape), Ledger()
    for part, size in model.bytes.items():
        ledger.add(part, size)
    if job.accumulation > 1:
        with ledger.making("gradients"):
            for weight in _trained_weights(model):
                weight.gradient = Value(ledger, weight.elements, weight.itemsize)
    walk = Walk(ledger, job.tokens, job.autocast_bytes, job.device.kind)
    walk.own_lora = job.own_lora
    before = ledger.made_bytes
    saved = _forward_backward(walk, model)
    peak = ledger.close()
    layer = max(sum(tensor.elements for tensor in shape.layer_tensors(at)) for at in shape.layer_kinds())
    sizes = StepSizes(
        peak.peak_bytes,
        +Counter(peak.peak_parts),
        saved,
        saved,
        ledger.made_bytes - before,
        max((linear.inputs * linear.outputs for linear in model.linears.values() if linear.quantized), default=0),
        model.gradient_bytes,
        max(layer, shape.vocabulary * shape.hidden),
        tuple(model.trained),
    )
    if job.checkpointing and job.on_cpu:
        sizes = replace(sizes, pass_bytes=_walk(replace(job, checkpointing=False), shape)[0].saved_bytes)
    return sizes, ledger


def walk_evaluation(job: Job, shape: Shape, scored: int) -> int:
    """Return what a pass in inference mode takes beyond the weights: hidden states, and logits where tokens are scored.

    Args:
        job: that evaluates; its batch is the pass's.
        shape: of its model.
        scored: tokens of the batch that have logits made.
    """

    def score(walk: Walk, model: Model, hidden: Value) -> None:
        # evaluation.py: logits, their float32 copy where they are not in it, and the logarithms of cross entropy.
        copies = 1 if job.compute_bytes == FLOAT32 else 2
        with walk.ledger.making("logits"):
            logits = walk.fresh(scored * shape.vocabulary, job.compute_bytes)
            walk.ledger.spike("logits", copies * scored * shape.vocabulary * FLOAT32)
        del hidden, logits

    return _walk_forward(job, shape, score, keeps_casts=False)


def walk_validation(job: Job, shape: Shape) -> int:
    """Return what a batch of the Trainer's own evaluation takes beyond the weights: the loss, under `no_grad`.

    Args:
        job: that evaluates; its batch is the pass's.
        shape: of its model.
    """
    return _walk_forward(job, shape, walk_loss, keeps_casts=True)


def _walk_forward(job: Job, shape: Shape, end: Callable[[Walk, Model, Value], Any], keeps_casts: bool) -> int:
    """Return the peak of a pass without gradients, from two layers: others only add autocast's casts of their own."""
    few = replace(shape, layers=min(2, shape.layers))
    model, ledger = Model(job, few), Ledger()
    walk = Walk(ledger, job.tokens, job.autocast_bytes, job.device.kind)
    walk.keeps_casts = keeps_casts
    with ledger.not_recording(), walk.autocasting():
        end(walk, model, walk_backbone(walk, model, job.tokens))
    peak, marks = ledger.close().peak_bytes, ledger.stages[1:]
    kept = _between(marks[0], marks[1]).total()
    return peak + (shape.layers - few.layers) * kept


def _trained_weights(model: Model) -> list[Weight]:
    added = [weight for linear in model.linears.values() for weight in linear.added()]
    return [*(weight for weight in model.weights.values() if weight.node is not None), *added]


def _forward_backward(walk: Walk, model: Model) -> int:
    ledger, job = walk.ledger, model.job
    batch = walk.fresh(job.tokens * 2, INDEX)
    with walk.autocasting():
        hidden = walk_backbone(walk, model, job.tokens)
        loss = walk_loss(walk, model, hidden)
        del hidden
        saved = ledger.parts["activations"]
    ledger.begin_stage()
    root = loss.node
    gradient = walk.fresh(1, FLOAT32)
    run_backward(ledger, root, gradient)
    del batch
    return saved
