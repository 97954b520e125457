"""How fast a step can be: its arithmetic and its bytes against the rates of a device."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hf_peft_recipes.plan.job import Job
from hf_peft_recipes.plan.profiles import Profile
from hf_peft_recipes.plan.shapes import Shape
from hf_peft_recipes.plan.step import StepSizes

PASSES_OF_MEMORY = 3
"""A tensor that an operation makes is written once and read about twice: on the way forward, and back."""

HOST_COPY_BYTES = 25e9
"""To the host and back, a second: most of what PCI Express 4.0 has with 16 lanes, 31.5 GB/s each way (PCI-SIG)."""


@dataclass(frozen=True)
class Speed:
    """What a step is expected to take."""

    tokens_per_second: float
    """Of all devices together; those of padding count too, unless it was timed."""
    bound: str | None
    """`arithmetic` or `memory`: which of the two takes longer; None where the device's rates are not known."""
    other_share: float | None
    """Of the time, that is no matrix product; None as above."""
    source: str
    timed: bool = False


def product_flops(job: Job, shape: Shape) -> float:
    """Return the arithmetic of all matrix products of one token, forward, back and made again.

    With N weights in products, N_A of adapters, A = 2 · length · query width · layers: LoRA runs 4·N + 6·N_A + 3.5·A,
    full fine-tuning 6·N + 3.5·A, all blocks made again 2·N_layers + A more (Kaplan et al. 2020, arXiv:2001.08361;
    Chowdhery et al. 2022, arXiv:2204.02311, appendix B). A frozen weight needs no gradient of its own, which saves 2·N.
    """
    layers, head = shape.active_products()
    adapters = _adapters(job, shape)
    attention = 2 * job.attention_span * shape.query_width * shape.layers
    weights = layers + head * (job.supervised if job.own_head or job.device.kind == "cuda" else 1.0)
    flops = (4 if job.adapter else 6) * weights + 6 * adapters + 3.5 * attention
    blocks, feed_forwards, _ = (number / shape.layers for number in job.stretches(shape.layers))
    flops += blocks * (2 * (layers + adapters) + attention)
    if feed_forwards:
        # Where they are one function, what gate and up gave is all that it needs.
        needed = 2 / 3 if job.gates_as_one(shape, 0) else 1
        flops += feed_forwards * needed * 2 * (shape.active_products("mlp.")[0] + _adapters(job, shape, "mlp."))
    return float(flops)


def _adapters(job: Job, shape: Shape, part: str = "") -> int:
    """Return the numbers of LoRA's factors that a token is multiplied with, of all layers or a part of each."""
    kinds = dict.fromkeys(range(shape.layers), 1) if job.tells_layers_apart else shape.layer_kinds()
    rank, found = int((job.adapter or {}).get("r") or 8), 0
    for layer, count in kinds.items():
        for tensor in shape.layer_tensors(layer):
            named = replace(tensor, name=f"model.layers.{layer}.{tensor.name}")
            if tensor.name.startswith(part) and job.adapts(named) and not tensor.stacked:
                found += count * rank * (tensor.rows + tensor.columns)
    return found


def expect_speed(job: Job, shape: Shape, step: StepSizes, profile: Profile) -> Speed:
    """Return the expected speed: products and the traffic of everything else, one after the other.

    Args:
        job: that runs.
        shape: of its model.
        step: its sizes.
        profile: the device's rates.
    """
    products = product_flops(job, shape) * job.tokens / profile.product_flops(job.layer_bytes)
    weights = step.parts["weights"] + step.parts["weights_quantized"]
    optimizer = 3 * step.parts["optimizer"] / job.accumulation
    traffic = (PASSES_OF_MEMORY * step.made_bytes + 2 * weights + optimizer) / profile.copy_bytes
    # Copies of blocks' inputs wait for the products before them, and these for the copies.
    moved = 2 * job.recompute.blocks * job.tokens * shape.hidden * job.item_bytes if job.offloads else 0
    traffic += moved / HOST_COPY_BYTES
    seconds = products + traffic
    bound = "arithmetic" if products >= traffic else "memory"
    return Speed(job.devices * job.tokens / seconds, bound, traffic / seconds, profile.source)
