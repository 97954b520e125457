"""What to change where a run does not fit, and how far a device reaches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any

from hf_peft_recipes.plan.estimates import Estimates
from hf_peft_recipes.plan.job import Job
from hf_peft_recipes.plan.recomputing import choose
from hf_peft_recipes.plan.shapes import Shape
from hf_peft_recipes.spec.recompute import AUTO

LOSSY = 1.5
"""By how much a change that trains something else (a shorter length, a coarser base) must be worth its while."""


@dataclass(frozen=True)
class Change:
    """One thing to change."""

    name: str
    settings: tuple[tuple[str, Any], ...]
    """Dotted keys of the recipe and their values; none for what is no value of a recipe."""
    apply: Callable[[Job], Job]
    lossy: bool = False
    """Whether what is trained changes, and not only how."""
    of_weights: bool = False
    """Whether a device holds other weights: what loading takes is changed by these alone."""


@dataclass(frozen=True)
class Advice:
    """Changes that were tried together."""

    names: tuple[str, ...]
    settings: dict[str, Any]
    total_bytes: int
    fits: bool
    time_factor: float
    """Time a token, against the run without the changes."""

    def shown(self) -> dict[str, Any]:
        """Return it as `plan --json` has it."""
        return {
            "change": " + ".join(self.names),
            "set": self.settings,
            "total_bytes": self.total_bytes,
            "fits": self.fits,
            "time_factor": round(self.time_factor, 3),
        }


def advise(job: Job, estimates: Estimates, chooses: bool) -> list[Advice]:
    """Return changes that make the run smaller: each alone, then the cheapest together that fit; that one first.

    Of a run that fits because it computes layers again, return those that train the same in less time.

    Args:
        job: that does not fit, or computes layers again.
        estimates: of its model.
        chooses: whether the run computes again what does not fit by itself, so that every change is tried with that.
    """
    room, kept = job.device.memory_bytes, job.keeping_all()
    base, before = estimates.seconds(job), estimates.memory(job).total_bytes
    changes = [*_changes(job), *([] if chooses or job.checkpointing else [_RECOMPUTE])]

    def applied(some: Sequence[Change], made: Job) -> Job:
        for change in some:
            made = change.apply(made)
        return made

    def changed(some: Sequence[Change]) -> Job:
        if not chooses and _RECOMPUTE not in some:
            return applied(some, job)
        made = applied(some, kept)
        return replace(made, recompute=choose(made, estimates))

    def tried(some: Sequence[Change], total: int) -> Advice:
        settings, made = {key: value for change in some for key, value in change.settings}, changed(some)
        names = [change.name for change in some if change is not _RECOMPUTE]
        if made.recompute and (made.recompute != job.recompute or _RECOMPUTE in some):
            names.append(f"recompute {made.recompute.of(estimates.shape.layers)}")
        return Advice(tuple(names), settings, total, total <= room, estimates.seconds(made) / base)

    if before <= room:
        faster = [
            tried([change], estimates.memory(changed([change])).total_bytes) for change in changes if not change.lossy
        ]
        return sorted((one for one in faster if one.fits and one.time_factor < 1), key=lambda one: one.time_factor)
    totals = [estimates.memory(changed([change])).total_bytes for change in changes]
    alone = [(change, tried([change], total)) for change, total in zip(changes, totals, strict=True) if total < before]
    found: list[Advice] = [advice for _, advice in alone if advice.fits]
    useful = [change for change, _ in alone]
    for number in range(2, len(useful) + 1):
        if found:
            break
        for some in combinations(useful, number):
            keys = [key for change in some for key, _ in change.settings]
            # Two steps of one ladder (half the length, a quarter) are no combination.
            if len(keys) != len(set(keys)):
                continue
            loaded = applied([change for change in some if change.of_weights], job)
            if estimates.memory(loaded).phases["load"] > room:
                continue
            if (total := estimates.memory(changed(some)).total_bytes) <= room:
                found.append(tried(some, total))
    lossy = {change.name for change in changes if change.lossy}
    found.sort(key=lambda advice: advice.time_factor * LOSSY ** sum(name in lossy for name in advice.names))
    rest = [advice for _, advice in alone if advice not in found[:1]]
    return [*found[:1], *sorted(rest, key=lambda advice: advice.total_bytes)]


_RECOMPUTE = Change("recompute", (("recompute", AUTO),), lambda job: job)
"""How much depends on what else is changed: it is chosen last."""


def _changes(job: Job) -> Iterator[Change]:
    divisor = 2
    while job.batch % divisor == 0:
        batch, accumulation = job.batch // divisor, job.accumulation * divisor
        settings: tuple[tuple[str, Any], ...] = (
            ("training.per_device_train_batch_size", batch),
            ("training.gradient_accumulation_steps", accumulation),
        )

        def smaller(j: Job, batch: int = batch, accumulation: int = accumulation) -> Job:
            return replace(j, batch=batch, accumulation=accumulation)

        yield Change(f"micro-batch {batch} × accumulation {accumulation}", settings, smaller)
        divisor *= 2
    if job.optimizer.startswith("adamw") and "8bit" not in job.optimizer and not job.on_cpu:
        name = "adamw_bnb_8bit"
        yield Change("8-bit optimizer", (("training.optim", name),), lambda j: replace(j, optimizer=name))
    if job.attention is None and job.device.flash_attention and job.needs_mask and not job.on_cpu:
        name = "flash_attention_2"
        settings = (("model.attn_implementation", name),)
        yield Change("flash attention", settings, lambda j: replace(j, attention="flash_attention_2"))
    batch = int(job.evaluation.get("batch_size") or 32)
    if batch > 1 and job.evaluation.get("max_rows") != 0:
        for rows in sorted({max(1, batch // 8), 1}, reverse=True):

            def fewer(j: Job, rows: int = rows) -> Job:
                return replace(j, evaluation={**j.evaluation, "batch_size": rows})

            yield Change(f"{rows} answers at a time", (("evaluation.batch_size", rows),), fewer)
    if job.adapter and not job.bits and not job.prequantized:
        settings = (
            ("quantization.load_in_4bit", True),
            ("quantization.bnb_4bit_quant_type", "nf4"),
            ("quantization.bnb_4bit_use_double_quant", True),
            ("quantization.bnb_4bit_compute_dtype", "bfloat16" if job.device.bf16 else "float32"),
        )
        four_bits = partial(replace, bits=4, double_quantized=True, four_bit_bytes=2 if job.device.bf16 else 4)
        yield Change("NF4 base", settings, four_bits, lossy=True, of_weights=True)
    length = job.length // 2
    while length >= 256:

        def shorter(j: Job, length: int = length) -> Job:
            return replace(j, length=length)

        yield Change(f"length {length}", (("training.max_length", length),), shorter, lossy=True)
        length //= 2
    if job.devices > 1 and job.sharding not in ("fsdp", "zero3"):
        name = "sharding over the devices (FSDP2)"
        yield Change(name, (), lambda j: replace(j, sharding="fsdp"), of_weights=True)


def largest(job: Job, shape: Shape, estimates: Estimates) -> dict[str, int]:
    """Return the largest micro-batch at this length, and the longest length for one row; 0 where nothing fits.

    Args:
        job: whose device is filled.
        shape: of its model.
        estimates: of the model.
    """

    def batch(number: int) -> Job:
        return replace(job, batch=number)

    def length(number: int) -> Job:
        return replace(job, batch=1, length=number * 64)

    most = max(1, (shape.positions or 2**20) // 64)
    return {"batch": _last(batch, job, estimates, 4096), "length": 64 * _last(length, job, estimates, most)}


def _last(make: Callable[[int], Job], job: Job, estimates: Estimates, most: int) -> int:
    """Return the largest number whose job fits; what it takes grows nearly evenly, so guesses are drawn on a line."""
    room = job.device.memory_bytes

    def taken(number: int) -> int:
        return estimates.memory(make(number), training_only=True).phases["train"]

    low, high = 1, most
    low_bytes, high_bytes = taken(low), taken(high)
    if low_bytes > room or high_bytes <= room:
        return 0 if low_bytes > room else most
    while high - low > 1:
        share = (room - low_bytes) / (high_bytes - low_bytes)
        # A curve bends away from the line: a little beyond the guess, and never at an end.
        guess = min(max(low + int(share * (high - low)), low + 1), high - 1)
        size = taken(guess)
        if size <= room:
            step = max(1, (high - guess) // 64)
            low, low_bytes = guess, size
            if guess + step < high and (beyond := taken(guess + step)) > room:
                high, high_bytes = guess + step, beyond
        else:
            high, high_bytes = guess, size
            step = max(1, (guess - low) // 64)
            if guess - step > low and (before := taken(guess - step)) <= room:
                low, low_bytes = guess - step, before
    return low
