"""From the sizes of a step to what a run takes: loading, training, evaluating, saving; on a GPU or in host memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hf_peft_recipes.plan.evaluating import GPU_FRAGMENTATION, Evaluation, plan_evaluation
from hf_peft_recipes.plan.job import Job
from hf_peft_recipes.plan.shapes import Shape
from hf_peft_recipes.plan.sizes import FLOAT32
from hf_peft_recipes.plan.step import StepSizes, walk_step

MIB = 2**20

HOST_LIBRARIES_BYTES = 545 * MIB
"""Resident before a model is loaded, with everything imported that a run needs: measured with torch 2.13 (CPU),
transformers 5.23, trl 1.16, peft 0.21.2, bitsandbytes 0.50.2, Linux x86-64."""
HOST_CODE_BYTES = 37 * MIB
"""Of those libraries, code that the first step, evaluation and saving fetch; measured likewise."""
KERNEL_BYTES, KERNELS_KEPT = MIB, 1024
"""What each new shape of a bfloat16 product leaves behind, and for how many shapes oneDNN keeps a kernel (its
documented ONEDNN_PRIMITIVE_CACHE_CAPACITY). Measured in real runs on documents of all lengths, two a row: 0.3 GiB more
after 16 micro-batches, 0.7 after 48, 1.1 after 112. Kernels explain a part: 0.53 MiB for another number of rows in a
product, 2.6 MiB for other documents in attention's way back (2.9 MiB by torch's own kernel). With room for 64 kernels
and every tensor in pages of its own half of the growth is gone; what the other half is has not been found."""
KERNELS_A_LENGTH = 13
"""Made for each new length of a document, by attention's way back, the layers' products over the row and the head.

Three of them since queries, keys and values share a product with their A, as gate and up do, whose shapes no other has:
runs on documents of all lengths took 61 MiB more.
"""
KERNELS_OF_ATTENTION = 5
"""Those among them that are of attention's way back, as many as it has products."""
KERNELS_A_BATCH, KERNELS_A_BARE_BATCH = 10, 3
"""Made for each new batch of evaluation, with an adapter's products and without them; measured likewise."""
SAVED_BATCHES = 4
"""Prompts that saving has answered, each a batch of its own: `certificate.PROMPTS`."""


@dataclass(frozen=True)
class Holes:
    """Holes in glibc's heap; those of training are shares of what a pass without checkpointing saves.

    Torch asks for memory aligned to 64 bytes, and glibc gives no hole of just the size again to such a request (its bug
    14581; glibc 2.36 here). With every tensor in pages of its own (MALLOC_MMAP_THRESHOLD_=65536) they are gone, and
    steps take a quarter longer.
    """

    back: float
    """Where the peak is on the way back."""
    remade: float
    """There too, where blocks make their activations anew between the gradients; of some layers, in proportion."""
    head: float
    """Where it is in a head that makes its logits in pages of their own, before the way back has left its holes."""
    evaluation: float
    """As a share of training's: what is left when evaluation has filled some, or by upstream's code made others."""
    quantizing: float
    """After loading, as a share of the quantised weights in float32."""
    whole: float = 0.0
    """On the way back, of weights in 4 bits that are made whole for each product; a share of them in float32."""


HOST_HOLES = {
    2: Holes(back=0.7, remade=0.55, head=0.5, evaluation=0.6, quantizing=0.25),
    4: Holes(back=1.05, remade=1.2, head=0.6, evaluation=0.9, quantizing=0.4),
}
"""By the bytes of a number in products: on a processor that has bfloat16, and in float32 on one that has not. Measured
over models, lengths and recipes; in float32 from 0.5 to 1.3 on the way back, to 1.5 where it makes activations anew,
from 0.3 to 0.9 in the head, and from 0 to 1 after loading, from load to load of the same model."""
OWN_HOLES = {
    2: Holes(back=0.3, remade=0.3, head=0.5, evaluation=1.3, quantizing=0.25),
    4: Holes(back=0.35, remade=0.5, head=0.6, evaluation=2.0, quantizing=0.4, whole=0.3),
}
"""The same where LoRA's layers, norms and rotary positions are functions of our own, which make fewer tensors of fewer
sizes. Measured over models and lengths: in bfloat16 from 0.2 to 0.3, in float32 from 0.15 to 0.35, and to 0.5 where it
makes activations anew; what they leave in a head that is not ours was not. Of weights in 4 bits multiplied in float32
from 0.15 to 0.45 of them in float32."""
MIXED_HOLES = Holes(back=0.45, remade=0.45, head=0.6, evaluation=2.0, quantizing=0.25, whole=0.2)
"""The same where weights in 4 bits are multiplied in float32 and hidden states are in bfloat16, so that tensors are of
twice as many sizes: from 0.3 to 0.7 on the way back. With these 38 runs of two days are planned within 5 %."""
GPU_CONTEXT_BYTES = 512 * MIB
"""CUDA's context and the code of the kernels; not measured here."""
GPU_WORKSPACE_BYTES = 8 * MIB
"""Of cuBLAS, torch's default `:4096:2:16:8`; 32 MiB from Hopper on. Not measured here."""

SHARDED = {
    "none": (),
    "ddp": (),
    "zero1": ("optimizer",),
    "zero2": ("optimizer", "gradients"),
    "zero3": ("weights", "weights_quantized", "adapters", "gradients", "optimizer"),
    "fsdp": ("weights", "weights_quantized", "adapters", "gradients", "optimizer"),
}
"""What each way of sharding divides among the devices: Rajbhandari et al. 2020, arXiv:1910.02054; FSDP2 as ZeRO-3."""

STATIC = ("weights", "weights_quantized", "adapters", "gradients", "optimizer")


@dataclass(frozen=True)
class Memory:
    """What one device, or the host, is to hold."""

    parts: dict[str, int]
    """Bytes by part, at the peak of training."""
    phases: dict[str, int]
    """Peak bytes of load, train, evaluate and save."""

    @property
    def total_bytes(self) -> int:
        """The peak of the whole run."""
        return max(self.phases.values())


def plan_memory(job: Job, shape: Shape, step: StepSizes | None = None) -> Memory:
    """Return what a run takes on each device.

    Args:
        job: that runs.
        shape: of its model.
        step: the sizes of its step, where they are known.
    """
    step = step or walk_step(job, shape)
    return memory_of(job, step, plan_evaluation(job, shape))


def memory_of(job: Job, step: StepSizes, evaluation: Evaluation) -> Memory:
    """Return what a run takes, given its step.

    Args:
        job: that runs.
        step: the sizes of its step on a device that holds the whole model.
        evaluation: what it takes beyond weights and optimizer.
    """
    parts = Counter(step.parts)
    divided = SHARDED[job.sharding] if job.devices > 1 else ()
    for part in divided:
        parts[part] = -(-parts[part] // job.devices)
    if job.devices > 1 and "weights" in divided:
        # A layer made whole while it works, and the next one on its way.
        parts["workspace"] += 2 * step.largest_layer * job.compute_bytes
    elif job.devices > 1:
        # DistributedDataParallel's buckets are as large as the gradients; ZeRO's likewise.
        parts["workspace"] += step.gradient_bytes
    fixed = _constants(job, evaluation)
    temporary = sum(size for part, size in parts.items() if part not in STATIC)
    parts["fragmentation"] += _fragmentation(job, step, temporary)
    parts += fixed
    kept = {part: size for part, size in parts.items() if size > 0}
    resident = fixed.total() + sum(parts[part] for part in ("weights", "weights_quantized", "adapters"))
    trained = parts["optimizer"] + resident
    fetched = HOST_CODE_BYTES if job.on_cpu else 0
    # Weights that stay as they are stored are pages of their file, which come when they are used.
    fetched += parts["weights"] if job.on_cpu and not job.bits and job.item_bytes == job.stored_item_bytes else 0
    return Memory(
        kept,
        {
            # `models.load_base` puts weights straight where they belong; the adapter comes after them.
            "load": resident - parts["adapters"] - fixed["kernels"] - fetched + _loading_bytes(job, step),
            "train": sum(kept.values()),
            "evaluate": trained + evaluation.size_bytes + _left_holes(job, step) + _kernels(job, SAVED_BATCHES),
            # A checkpoint or `saving.save`: gradients are gone, and safetensors and torch write tensors as they lie.
            "save": trained + max(_quantizing_holes(job), _weight_holes(job)) + _kernels(job, SAVED_BATCHES),
        },
    )


def _fragmentation(job: Job, step: StepSizes, temporary: int) -> int:
    """Return what the allocator holds and nobody uses at the peak of training."""
    if not job.on_cpu:
        return int(GPU_FRAGMENTATION * temporary)
    holes = _holes(job)
    blocks, feed_forwards, kept = job.stretches(job.layers)
    back = (blocks * holes.remade + (feed_forwards + kept) * holes.back) / max(1, job.layers)
    return int((back if job.own_head else holes.head) * step.pass_bytes) + _weight_holes(job)


def _left_holes(job: Job, step: StepSizes) -> int:
    """Return what of training's holes evaluation does not fill."""
    return int(_holes(job).evaluation * _fragmentation(job, step, 0)) if job.on_cpu else 0


def _quantizing_holes(job: Job) -> int:
    """Return what quantising leaves; training fills it, and leaves it again."""
    if not (job.on_cpu and job.bits) or job.prequantized:
        return 0
    return int(_holes(job).quantizing * FLOAT32 * job.quantized_elements)


def _weight_holes(job: Job) -> int:
    """Return what making weights in 4 bits whole leaves."""
    return int(_holes(job).whole * FLOAT32 * job.quantized_elements) if job.on_cpu and job.bits == 4 else 0


def _holes(job: Job) -> Holes:
    own = job.own_lora and job.own_layers
    if own and job.layer_bytes != job.compute_bytes:
        return MIXED_HOLES
    return (OWN_HOLES if own else HOST_HOLES)[min(job.layer_bytes, FLOAT32)]


def _constants(job: Job, evaluation: Evaluation) -> Counter[str]:
    """Return what libraries and their caches take, by part."""
    if not job.on_cpu:
        hopper = any(name in job.device.name for name in ("H100", "H200", "B200"))
        workspace = GPU_WORKSPACE_BYTES * (4 if hopper else 1)
        return Counter(libraries=GPU_CONTEXT_BYTES, workspace=workspace)
    constants = Counter(libraries=HOST_LIBRARIES_BYTES + HOST_CODE_BYTES)
    if job.bits and not job.prequantized and job.stored_item_bytes == job.item_bytes:
        # What is not quantised is a view of the file, which keeps all of the file's pages that were read.
        constants["mapped_files"] = job.quantized_elements * job.stored_item_bytes
    constants["kernels"] = _kernels(job, evaluation.batch_kinds, job.document_lengths if job.by_document else 0)
    return constants


def _kernels(job: Job, batches: int, lengths: int = 0) -> int:
    """Return what the kernels for new batches of evaluation and new lengths of documents leave behind."""
    if not job.on_cpu or job.compute_bytes == FLOAT32:
        return 0
    # Weights in 4 bits may be multiplied in float32, between attention in bfloat16.
    a_length = KERNELS_A_LENGTH if job.layer_bytes == job.compute_bytes else KERNELS_OF_ATTENTION
    made = batches * (KERNELS_A_BATCH if job.adapter else KERNELS_A_BARE_BATCH) + lengths * a_length
    return min(KERNELS_KEPT, made) * KERNEL_BYTES


def _loading_bytes(job: Job, step: StepSizes) -> int:
    """Return what loading takes beyond the weights that stay."""
    if job.prequantized:
        return 0
    # One weight whole in its own precision, and what quantising makes of it in float32.
    made = step.largest_quantized * (job.stored_item_bytes + FLOAT32) if job.bits else 0
    if not job.on_cpu:
        return made
    made += _quantizing_holes(job)
    if job.item_bytes != job.stored_item_bytes:
        # The pages of the files, beside the weights that were made of them.
        quantized = job.quantized_elements if job.bits else 0
        made += (quantized + step.parts["weights"] // job.item_bytes) * job.stored_item_bytes
    return made
