"""One training step walked through in sizes: the layers of `transformers/models/*/modeling_*.py`, TRL's loss, LoRA.

Instant and without torch; `trace` runs the real code on the meta device, and a test holds the two together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
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
    """What it would hold then if no layer were computed again."""
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


@dataclass(frozen=True)
class FewLayers:
    """A walk through few layers of each stretch of a model: of layers that are alike, and computed again alike."""

    sizes: StepSizes
    stages: Sequence[Stage]
    numbers: tuple[int, ...]
    """Layers of each stretch that were walked through."""
    held: Counter[str]
    """What a layer holds from the beginning to the end, by part."""
    gradients: Counter[str]
    """What the way back through a layer adds for good."""
    trained: tuple[int, ...]
    """Numbers in each of a layer's trained tensors."""
    gradient_bytes: int
    """Of a layer."""

    def of_many(self, numbers: Sequence[int]) -> StepSizes:
        """Return the sizes of a step without an optimizer, those of most layers from the one in a stretch's middle.

        What such a layer adds is the same at every place, so each stage's peak grows along a line with the number of
        layers, and the highest one is at an end: in a stretch's first layer, in its last, or in a neighbour of these.

        Args:
            numbers: of layers in each stretch; more than were walked through where those are `FEW_LAYERS`.
        """
        more = [many - few for many, few in zip(numbers, self.numbers, strict=True)]
        layers, stages, held = sum(self.numbers), self.stages, _times(sum(more), self.held)
        head, turn, below = layers + 1, layers + 2, 2 * layers + 3
        forward = list(zip(_cut(stages[1:head], self.numbers), more, strict=True))
        back = list(zip(_cut(stages[turn + 1 : below], self.numbers[::-1]), more[::-1], strict=True))
        there, forth, made_forth = _passed(forward, held)
        # Less than was kept when the way forward ended: autocast's casts go before the way back begins.
        reached = held
        for (some, many), (some_back, _) in zip(forward, reversed(back), strict=True):
            if many:
                saved = _less(self.gradients, _between(some_back[1], some_back[2]))
                reached = _sum(reached, _times(many, _sum(saved, {"activations": some[1].kept_bytes})))
        and_back, left, made_back = _passed(back, reached)
        candidates = [
            (stages[0], held), *there, (stages[head], forth), (stages[turn], reached), *and_back,
            *((stage, left) for stage in stages[below:]),
        ]  # fmt: skip
        peak, added = max(candidates, key=lambda pair: pair[0].peak_bytes + pair[1].total())
        saved_bytes = self.sizes.saved_bytes + _less(forth, held)["activations"]
        return replace(
            self.sizes,
            peak_bytes=peak.peak_bytes + added.total(),
            parts=+_sum(peak.peak_parts, added),
            saved_bytes=saved_bytes,
            pass_bytes=saved_bytes,
            made_bytes=self.sizes.made_bytes + made_forth + made_back,
            gradient_bytes=self.sizes.gradient_bytes + sum(more) * self.gradient_bytes,
            trained=self.sizes.trained + sum(more) * self.trained,
        )


def walk_step(job: Job, shape: Shape, few: Callable[[Job, Shape], FewLayers] | None = None) -> StepSizes:
    """Return what one training step takes on one device that holds the whole model.

    With accumulation it is a micro-batch after the first, which finds the gradients of those before; the optimizer's
    states are there, as from the second step on. Where all layers are alike, few are walked through, and the others
    take what the one between its neighbours takes: `walk_whole_step` comes to the same.

    Args:
        job: that runs.
        shape: of its model.
        few: `walk_few`, or what remembers its results.
    """
    if len(shape.layer_kinds()) > 1 or job.tells_layers_apart:
        return walk_whole_step(job, shape)
    sizes = (few or walk_few)(job, shape).of_many(job.stretches(shape.layers))
    return _whole_pass(job, sizes, lambda plain: walk_step(plain, shape, few)).under(job.optimizer)


def walk_whole_step(job: Job, shape: Shape) -> StepSizes:
    """Return what `walk_step` returns, every layer walked through."""
    sizes, _ = _walk(job, shape)
    return _whole_pass(job, sizes, lambda plain: _walk(plain, shape)[0]).under(job.optimizer)


def walk_few(job: Job, shape: Shape) -> FewLayers:
    """Return a walk through few layers of each stretch.

    Args:
        job: whose layers are alike.
        shape: of its model.
    """
    numbers = few_of(job, shape)
    few = replace(shape, layers=sum(numbers))
    amount = replace(job.recompute, blocks=numbers[0], feed_forwards=numbers[1])
    fewer_of_each = replace(job, recompute=amount) if job.recompute else job
    sizes, ledger = _walk(fewer_of_each, few)
    model, fewer = Model(job, few), Model(job, replace(few, layers=few.layers - 1))
    trained = tuple((Counter(model.trained) - Counter(fewer.trained)).elements())
    held, gradient_bytes = _less(model.bytes, fewer.bytes), sum(trained) * model.trained_item_bytes
    gradients = Counter(gradients=gradient_bytes)
    if job.accumulation > 1:
        # They are there from the beginning.
        held, gradients = _sum(held, gradients), Counter()
    return FewLayers(sizes, ledger.stages, numbers, held, gradients, trained, gradient_bytes)


def few_of(job: Job, shape: Shape) -> tuple[int, ...]:
    """Return how many layers of each stretch are walked through."""
    return tuple(min(number, FEW_LAYERS) for number in job.stretches(shape.layers))


def _whole_pass(job: Job, sizes: StepSizes, walk: Callable[[Job], StepSizes]) -> StepSizes:
    """Return the sizes with what a pass would save that keeps all: on a host, holes are shares of that."""
    if not (job.recomputes and job.on_cpu):
        return sizes
    return replace(sizes, pass_bytes=walk(job.keeping_all()).saved_bytes)


Passed = list[tuple[Stage, Counter[str]]]


def _passed(stretches: Sequence[tuple[Sequence[Stage], int]], added: Counter[str]) -> tuple[Passed, Counter[str], int]:
    """Return the stages where a peak may be, with what further layers add there; what they have added then, and made.

    Args:
        stretches: the stages of each one's few layers, in the order in which they are passed, and how many more it has.
        added: what further layers add before.
    """
    stages, made = Passed(), 0
    for few, more in stretches:
        if not more:
            stages += [(stage, added) for stage in few]
            continue
        _, middle, last = few
        stages += [(stage, added) for stage in few[:2]]
        added = _sum(added, _times(more, _between(middle, last)))
        stages += [(stage, added) for stage in few[1:]]
        made += more * (last.start_made_bytes - middle.start_made_bytes)
    return stages, added, made


def _cut(stages: Sequence[Stage], numbers: Sequence[int]) -> list[Sequence[Stage]]:
    ends = list(accumulate(numbers))
    return [stages[end - number : end] for number, end in zip(numbers, ends, strict=True)]


def _times(number: int, one: Mapping[str, int]) -> Counter[str]:
    return Counter({part: number * size for part, size in one.items()})


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
    walk.own_lora, walk.own_layers = job.own_lora, job.own_layers
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
