"""From the steps of a run to figures that can be compared: rates after warm-up, shares of what the device can do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_peft_recipes.api import Recipe
from hf_peft_recipes.spec.recompute import NOTHING, read_recompute

# The clock brings torch, and who starts measurements holds nothing that they would have to share a GPU with.
if TYPE_CHECKING:
    from hf_peft_recipes.measure.clock import Step


def figures_of(recipe: Recipe, model: Path, measured: Mapping[str, Any], warmup: int) -> dict[str, Any]:
    """Return the rates of the steps after warm-up, and MFU and HFU where the device's rate is known.

    `mfu` counts the arithmetic that the model asks for, `hfu` what was executed, which checkpointing adds to; both of
    the rate of matrix products: the data sheet's of a GPU, the one that was measured of a CPU (`peak_flops`, with its
    `peak_source`). Chowdhery et al. 2022, arXiv:2204.02311, appendix B.

    Args:
        recipe: that ran.
        model: folder of its base.
        measured: of the run's record, with its `series`.
        warmup: steps that are left out.
    """
    from hf_peft_recipes.measure.clock import Step, rates

    series = measured["series"]
    steps = [Step(*values) for values in zip(*(series[name] for name in Step.__annotations__), strict=True)]
    timed = steps[warmup:]
    found = {**rates(timed), "steps": len(timed), "warmup": warmup}
    return found | _utilization(recipe, model, timed, measured)


def _utilization(recipe: Recipe, model: Path, timed: list[Step], measured: Mapping[str, Any]) -> dict[str, Any]:
    from hf_peft_recipes.plan.configs import read_config
    from hf_peft_recipes.plan.make_job import make_job
    from hf_peft_recipes.plan.profiles import find_profile, measure_cpu
    from hf_peft_recipes.plan.shapes import ARCHITECTURES, read_shape
    from hf_peft_recipes.plan.throughput import product_flops

    device, config = recipe.device, read_config(str(model))
    if device.kind == "cpu":
        # What the machine can do is seen best in the same minutes.
        measure_cpu(device)
    profile = find_profile(device)
    tokens = sum(step.tokens for step in timed)
    if profile is None or config["model_type"] not in ARCHITECTURES or not tokens:
        return {"mfu": None, "hfu": None}
    job, shape = make_job(recipe.resolved, config, str(model), device), read_shape(config, str(model))
    # A token attends to its own document, so what counts is how long documents really were.
    length = round(sum(step.pairs for step in timed) / tokens)
    again = NOTHING if job.checkpointing else read_recompute(measured["recompute"]) or NOTHING
    job = replace(job, length=length, supervised=sum(step.supervised for step in timed) / tokens, recompute=again)
    attention = 2 * length * shape.query_width * shape.layers
    executed = product_flops(job, shape)
    asked = product_flops(job.keeping_all(), shape) - 0.5 * attention
    seconds, peak = sum(step.seconds for step in timed), profile.peak_flops(job.layer_bytes)
    return {
        "mfu": asked * tokens / seconds / peak,
        "hfu": executed * tokens / seconds / peak,
        "attended_length": length,
        "peak_flops": peak,
        "peak_source": profile.source,
    }
