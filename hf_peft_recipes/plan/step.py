"""One training step walked through in sizes: the layers of `transformers/models/*/modeling_*.py`, TRL's loss, LoRA.

Instant and without torch; `trace` runs the real code on the meta device, and a test holds the two together.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from hf_peft_recipes.plan.job import Job
from hf_peft_recipes.plan.layers import walk_backbone
from hf_peft_recipes.plan.loss import walk_loss
from hf_peft_recipes.plan.operations import INDEX, Walk
from hf_peft_recipes.plan.optimizers import optimizer_bytes
from hf_peft_recipes.plan.shapes import Shape
from hf_peft_recipes.plan.sizes import FLOAT32, Ledger, Value, Weight, run_backward
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


def walk_step(job: Job, shape: Shape) -> StepSizes:
    """Return what one training step takes on one device that holds the whole model.

    With accumulation it is a micro-batch after the first, which finds the gradients of those before; the optimizer's
    states are there, as from the second step on.
    """
    model, ledger = Model(job, shape), Ledger()
    for part, size in model.bytes.items():
        ledger.add(part, size)
    ledger.add("optimizer", optimizer_bytes(job.optimizer, model.trained, model.trained_item_bytes))
    if job.accumulation > 1:
        with ledger.making("gradients"):
            for weight in _trained_weights(model):
                weight.gradient = Value(ledger, weight.elements, weight.itemsize)
    walk = Walk(ledger, job.tokens, job.autocast_bytes, job.device.kind)
    before = ledger.made_bytes
    saved = _forward_backward(walk, model)
    whole = saved
    if job.checkpointing and job.on_cpu:
        whole = walk_step(replace(job, checkpointing=False), shape).saved_bytes
    layer = max(sum(tensor.elements for tensor in shape.layer_tensors(at)) for at in {0, shape.layers - 1})
    return StepSizes(
        ledger.peak_bytes,
        +ledger.peak_parts,
        saved,
        whole,
        ledger.made_bytes - before,
        max((linear.inputs * linear.outputs for linear in model.linears.values() if linear.quantized), default=0),
        model.gradient_bytes,
        max(layer, shape.vocabulary * shape.hidden),
    )


def walk_evaluation(job: Job, shape: Shape, tokens: int, scored: int) -> int:
    """Return what a pass without gradients takes beyond the weights: hidden states, and logits where tokens are scored.

    Args:
        job: that evaluates.
        shape: of its model.
        tokens: of the batch.
        scored: of those, how many have logits made.
    """
    model, ledger = Model(job, shape), Ledger()
    walk = Walk(ledger, tokens, job.autocast_bytes, job.device.kind)
    with ledger.not_recording():
        hidden = walk_backbone(walk, model, tokens)
        # evaluation.py: logits, their float32 copy, and what cross entropy makes of it.
        with ledger.making("logits"):
            logits = walk.fresh(scored * shape.vocabulary, job.autocast_bytes or job.item_bytes)
            ledger.spike("logits", 2 * scored * shape.vocabulary * FLOAT32)
        del hidden, logits
    return ledger.peak_bytes


def _trained_weights(model: Model) -> list[Weight]:
    loras = [weight for linear in model.linears.values() for weight in linear.lora or ()]
    return [*(weight for weight in model.weights.values() if weight.node is not None), *loras]


def _forward_backward(walk: Walk, model: Model) -> int:
    ledger, job = walk.ledger, model.job
    batch = walk.fresh(job.tokens * 2, INDEX)
    with walk.autocasting():
        hidden = walk_backbone(walk, model, job.tokens)
        loss = walk_loss(walk, model, hidden)
        del hidden
        saved = ledger.parts["activations"]
    root = loss.node
    gradient = walk.fresh(1, FLOAT32)
    run_backward(ledger, root, gradient)
    del batch
    return saved
