"""What a run will need in memory and time, told from a config.json before a byte of weights is loaded.

Two ways that check each other: `step` walks through a training step in sizes alone, instantly and without torch;
`trace` runs the real code on torch's meta device. Importing this package imports nothing heavy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hf_peft_recipes.device import Device
from hf_peft_recipes.errors import UnplannedError, UserError, did_you_mean
from hf_peft_recipes.plan.bases import Base, describe
from hf_peft_recipes.plan.estimates import Estimates
from hf_peft_recipes.plan.evaluating import Evaluation
from hf_peft_recipes.plan.fit import Advice, advise, largest
from hf_peft_recipes.plan.job import Job
from hf_peft_recipes.plan.memory import STATIC, Memory, memory_of
from hf_peft_recipes.plan.profiles import find_profile, measure_cpu
from hf_peft_recipes.plan.recomputing import choose, everything
from hf_peft_recipes.plan.shapes import ARCHITECTURES, Shape
from hf_peft_recipes.plan.sizes import uncollected
from hf_peft_recipes.plan.step import StepSizes
from hf_peft_recipes.plan.stored import StoredWeights
from hf_peft_recipes.plan.throughput import Speed, expect_speed
from hf_peft_recipes.spec import ResolvedRecipe
from hf_peft_recipes.spec.recompute import AUTO, NOTHING, Recompute

# It looks at data, and brings along what reads them.
if TYPE_CHECKING:
    from hf_peft_recipes.plan.documents import Documents

AGREEMENT = 0.05
"""By how much the two ways may differ."""


@dataclass(frozen=True)
class MemoryPlan:
    """What a run will need on each device, or of the host's memory."""

    recipe: str
    model: str
    device: Device
    devices: int
    sharding: str
    parts: Mapping[str, int]
    """Bytes by part, at the peak of training."""
    phases: Mapping[str, int]
    """Peak bytes of load, train, evaluate and save."""
    parameters: int
    trainable: int
    tokens_per_second: float | None
    """Of all devices; None where the device's rates are not known."""
    bound: str | None
    """What the speed is limited by: `arithmetic` or `memory`."""
    other_share: float | None
    """Of the time, that is no matrix product."""
    hours: float | None
    """Of the run, where its number of steps is given or its data were looked at."""
    limits: Mapping[str, int]
    """The largest micro-batch at this length, and the longest length of a single row."""
    advice: tuple[Advice, ...]
    """What would make it fit, cheapest first; or what would be faster, where it fits by computing layers again."""
    assumptions: tuple[str, ...]
    way: str
    """`closed form`, `trace`, or both."""
    traced_peak_bytes: int | None = None
    """Of one step on one device, by the trace; without libraries and holes."""
    step: Mapping[str, int] = field(default_factory=dict)
    """Micro-batch, accumulation, length and checkpointing that were planned."""
    recompute: Recompute = NOTHING
    """What is computed again, as the recipe says or, with `recompute: auto`, so that it fits."""
    recompute_time_factor: float = 1.0
    """Time a token, against a run that keeps all."""
    data: Mapping[str, Any] | None = None
    """What the data are like, and how many steps they make; None where they were not looked at."""

    @property
    def total_bytes(self) -> int:
        """The peak of the whole run, on one device."""
        return max(self.phases.values())

    @property
    def peak_phase(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: self.phases[phase])

    @property
    def fits(self) -> bool:
        """Whether the device's memory is enough."""
        return self.total_bytes <= self.device.memory_bytes

    def shown(self) -> dict[str, Any]:
        """Return it as `plan --json` prints it."""
        return {
            "recipe": self.recipe,
            "model": self.model,
            "device": self.device.name,
            "memory_bytes": self.device.memory_bytes,
            "devices": self.devices,
            "sharding": self.sharding,
            "total_bytes": self.total_bytes,
            "peak_phase": self.peak_phase,
            "fits": self.fits,
            "parts": dict(self.parts),
            "phases": dict(self.phases),
            "parameters": self.parameters,
            "trainable": self.trainable,
            "step": dict(self.step),
            "recompute": str(self.recompute),
            "recompute_time_factor": round(self.recompute_time_factor, 3),
            "data": None if self.data is None else dict(self.data),
            "tokens_per_second": self.tokens_per_second,
            "bound": self.bound,
            "other_share": self.other_share,
            "hours": self.hours,
            "limits": dict(self.limits),
            "advice": [advice.shown() for advice in self.advice],
            "assumptions": list(self.assumptions),
            "way": self.way,
            "traced_peak_bytes": self.traced_peak_bytes,
        }


def plan_run(
    recipe: ResolvedRecipe,
    config: Mapping[str, Any],
    source: str,
    device: Device,
    devices: int = 1,
    sharding: str | None = None,
    trace: bool = False,
    documents: Documents | None = None,
    stored: StoredWeights | None = None,
    measure: bool = False,
) -> MemoryPlan:
    """Return the plan of a recipe's run.

    Args:
        recipe: resolved for the device.
        config: of the base, as its config.json has it.
        source: path or Hub id of the base.
        device: that it is to run on.
        devices: how many of them.
        sharding: one of `job.SHARDINGS`; None for `ddp` where there are several devices.
        trace: run the step on the meta device too.
        documents: of the data, as `documents.look_at_documents` returns them; None for a plan without them.
        stored: what the base's files hold, None where they are not at hand.
        measure: time a step here, on few layers of the model.

    Raises:
        UserError: an architecture that transformers does not have, numbers that make no plan, or a device that is not
            here, to be timed.
    """
    base = Base(config, source, stored)
    job, shape, missing, told = describe(recipe, base, device, devices, sharding, documents)
    if shape is None:
        _check_known(str(config.get("model_type")), source)
        return _traced_alone(recipe, job, missing, documents, measure)
    if measure and job.on_cpu and find_profile(device) is None:
        measure_cpu(device)
    profile = find_profile(device)
    estimates, chooses = Estimates(shape, profile), recipe.value("recompute") == AUTO and not job.checkpointing
    with uncollected():
        if chooses:
            job = replace(job, recompute=choose(job, estimates))
        step, memory = estimates.step(job), estimates.memory(job)
        factor = estimates.seconds(job) / estimates.seconds(job.keeping_all())
        fits = memory.total_bytes <= device.memory_bytes
        limits = largest(everything(job) if chooses else job, shape, estimates)
        advice = tuple(advise(job, estimates, chooses)) if not fits or (chooses and job.recompute) else ()
    speed = expect_speed(job, shape, step, profile) if profile else None
    traced = None
    if trace:
        from hf_peft_recipes.plan.trace import trace_step

        traced = trace_step(job).peak_bytes
    if measure:
        timed, factor = _timed(job, recipe, documents)
        speed = replace(timed, bound=speed.bound, other_share=speed.other_share) if speed else timed
    trained = step.gradient_bytes // (4 if job.adapter else job.item_bytes)
    total = shape.parameters() + job.extra_elements + (trained if job.adapter else 0)
    return _plan(
        recipe, job, memory, (total, trained), "closed form and trace" if trace else "closed form", traced,
        (*told, *_assumptions(job, speed, documents)), limits, documents, speed, advice, factor,
    )  # fmt: skip


def _timed(job: Job, recipe: ResolvedRecipe, documents: Documents | None) -> tuple[Speed, float]:
    """Return the speed that a step shows here, without the reasons for it, and how much longer recomputing makes it."""
    from hf_peft_recipes.plan.timing import time_step

    timing = time_step(job, recipe, documents)
    layers = " and ".join(map(str, timing.layers))
    source = f"timed here, on {layers} layers of the model with random weights"
    return Speed(job.devices * timing.tokens_per_second, None, None, source, timed=True), timing.recompute_factor


def _traced_alone(
    recipe: ResolvedRecipe, job: Job, missing: str, documents: Documents | None, measure: bool
) -> MemoryPlan:
    """Return the plan of a step that has no closed form."""
    from hf_peft_recipes.plan.trace import trace_step

    try:
        traced = trace_step(job)
    except (RuntimeError, NotImplementedError) as error:
        # Of these types nothing else is known, and code that reads values finds none on the meta device.
        kind = job.adapter["peft_type"] if job.adapter else "this model"
        told = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UnplannedError(
            f"there is no plan of {kind} yet: its code does not run on the meta device ({told})"
        ) from None
    static = {"weights": traced.weight_bytes, "optimizer": traced.optimizer_bytes}
    gradients = traced.trainable * (4 if job.adapter else job.item_bytes)
    parts: dict[str, int] = {**static, "gradients": gradients if job.accumulation > 1 else 0}
    parts["activations"] = traced.peak_bytes - sum(parts.values())
    sizes = StepSizes(traced.peak_bytes, _counter(parts), traced.saved_bytes, traced.saved_bytes, 0, 0, gradients, 0)
    memory = memory_of(job, sizes, Evaluation())
    note = f"{missing} has no closed form: traced on the meta device; evaluation is not planned"
    speed = _timed(job, recipe, documents)[0] if measure else None
    return _plan(
        recipe, job, memory, (traced.parameters, traced.trainable), "trace", traced.peak_bytes,
        (note, *_assumptions(job, speed, documents)), {}, documents, speed, (),
    )  # fmt: skip


def _plan(
    recipe: ResolvedRecipe,
    job: Job,
    memory: Memory,
    parameters: tuple[int, int],
    way: str,
    traced: int | None,
    assumptions: tuple[str, ...],
    limits: Mapping[str, int],
    documents: Documents | None,
    speed: Speed | None,
    advice: tuple[Advice, ...],
    factor: float = 1.0,
) -> MemoryPlan:
    rate, data = speed.tokens_per_second if speed else None, None
    positions = max(0, int(job.arguments.get("max_steps") or 0)) * job.accumulation * job.tokens * job.devices
    if documents:
        data = _data(job, documents)
        timed = speed is not None and speed.timed
        epoch = documents.tokens if timed else documents.positions(job.batch, job.packed)
        positions = round(data["epochs"] * epoch)
    return MemoryPlan(
        recipe.name, job.source, job.device, job.devices, job.sharding, memory.parts, memory.phases, *parameters,
        hours=positions / rate / 3600 if rate and positions else None,
        limits=limits, assumptions=assumptions, way=way, traced_peak_bytes=traced,
        step={
            "batch": job.batch, "accumulation": job.accumulation, "length": job.length,
            "checkpointing": int(job.checkpointing), "layers": job.layers,
        },
        recompute=job.recompute,
        recompute_time_factor=factor,
        data=data,
        tokens_per_second=rate,
        bound=speed.bound if speed else None,
        other_share=speed.other_share if speed else None,
        advice=advice,
    )  # fmt: skip


def _data(job: Job, documents: Documents) -> dict[str, Any]:
    """Return what the data are like, and how long a run goes through them, as `plan --json` has it."""
    epoch = documents.steps(job.batch, job.accumulation, job.devices)
    epochs, steps = float(job.arguments.get("num_train_epochs") or 3), int(job.arguments.get("max_steps") or -1)
    return {
        "rows": len(documents.lengths),
        "tokens": documents.tokens,
        "supervised_tokens": documents.supervised_tokens,
        "longest": max(documents.lengths),
        "packed_rows": documents.row_count if job.packed else None,
        "fill": documents.tokens / (documents.row_count * documents.row_length),
        "epochs": steps / epoch if steps > 0 else epochs,
        "steps": steps if steps > 0 else math.ceil(epochs * epoch),
    }


def _assumptions(job: Job, speed: Speed | None, documents: Documents | None) -> tuple[str, ...]:
    told = [f"every row is full: {job.length} tokens, all of them with loss; `--data` reads them, and tells the hours"]
    if documents:
        told = ["tokens with loss are spread evenly over the rows"]
    if job.on_cpu and job.by_document and job.autocast_bytes:
        lengths = "1 length" if job.document_lengths == 1 else f"up to {job.document_lengths} different lengths"
        told.append(f"packed documents of {lengths}: each leaves kernels behind, about 1 GiB in a long run")
    if job.device.kind != "cpu":
        told.append("no figure for a GPU has been checked against one: context, workspace and holes are estimates")
    if job.needs_mask and not job.on_cpu:
        told.append("attention runs through SDPA with a dense mask, since the recipe asks for no flash attention")
    told.append(
        f"speed: {speed.source}" if speed else "speed: not known; `--measure` times a step on the device itself"
    )
    return tuple(told)


def _check_known(kind: str, source: str) -> None:
    from importlib.util import find_spec
    from pathlib import Path

    spec = find_spec("transformers")
    folder = Path(str(spec.origin)).parent / "models" if spec else Path()
    base = kind.removesuffix("_text")
    if not (folder / kind).is_dir() and not (folder / base).is_dir():
        known = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set(ARCHITECTURES)
        raise UserError(f"model {source!r}: unknown architecture {kind!r}{did_you_mean(kind, known)}")


def _counter(parts: Mapping[str, int]) -> Any:
    from collections import Counter

    return Counter(parts)


__all__ = ["AGREEMENT", "STATIC", "MemoryPlan", "Shape", "plan_run"]
