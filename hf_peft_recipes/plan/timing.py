"""How fast a run will be, measured here before its weights are loaded: few of its layers, with random weights.

All layers of a model take the same time, so a model of one layer and one of four tell what a model of eighty will take.
What runs is what would run: transformers' layers, PEFT's adapters, TRL's trainer, the faster paths.
"""

from __future__ import annotations

import random
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hf_peft_recipes.adapters import add_adapter
from hf_peft_recipes.data import PreparedData
from hf_peft_recipes.embedded import MODEL_DIR
from hf_peft_recipes.measure.clock import Step, StepClock
from hf_peft_recipes.models import load_tokenizer, quantize
from hf_peft_recipes.objectives import find_objective
from hf_peft_recipes.plan.job import Job
from hf_peft_recipes.spec import ResolvedRecipe
from hf_peft_recipes.speed import speed_up
from hf_peft_recipes.upstream_noise import quiet

LAYERS = (1, 4)
"""Numbers of layers that are timed; a model that has no more is timed whole."""
WARMUP, STEPS = 1, 3


@dataclass(frozen=True)
class Timing:
    """What a step of the whole model will take."""

    step_seconds: float
    tokens_per_second: float
    """Real tokens, of this device."""
    layer_seconds: float
    """Of that, what each layer takes."""


def time_step(job: Job, recipe: ResolvedRecipe, rows: Sequence[dict[str, list[int]]] | None = None) -> Timing:
    """Return what an optimizer step of the whole model takes on this machine.

    Args:
        job: the run in numbers.
        recipe: that runs.
        rows: token rows to train on, `input_ids` and `labels`; None for rows that are full to the last token.
    """
    layers = int(job.config["num_hidden_layers"])
    with quiet():
        if layers <= LAYERS[-1]:
            whole = _steps(job, recipe, layers, rows)
            return _timing(whole, statistics.median(step.seconds for step in whole), 0.0)
        few, more = (_steps(job, recipe, number, rows) for number in LAYERS)
    first, last = (statistics.median(step.seconds for step in steps) for steps in (few, more))
    layer = (last - first) / (LAYERS[1] - LAYERS[0])
    return _timing(more, first + (layers - LAYERS[0]) * layer, layer)


def _timing(steps: Sequence[Step], seconds: float, layer: float) -> Timing:
    tokens = statistics.mean(step.tokens for step in steps)
    return Timing(seconds, tokens / seconds, layer)


def _steps(job: Job, recipe: ResolvedRecipe, layers: int, rows: Sequence[dict[str, list[int]]] | None) -> list[Step]:
    """Return the timed steps of the model with so many layers."""
    from datasets import Dataset
    from transformers import set_seed

    objective, number = find_objective(recipe.objective), WARMUP + STEPS
    set_seed(0)
    model = _model(job, recipe, layers, objective.TASK_TYPE)
    data = Dataset.from_list(list(rows) if rows else _full_rows(job, number))
    with tempfile.TemporaryDirectory() as folder:
        quiet_ones = {"eval_strategy": "no", "save_strategy": "no", "report_to": "none", "disable_tqdm": True}
        arguments = objective.training_arguments(
            {**job.arguments, **quiet_ones, "max_steps": number, "output_dir": folder}
        )
        clock = StepClock()
        trainer = objective.build_trainer(
            model, load_tokenizer({"name_or_path": str(MODEL_DIR)}), PreparedData(data, None, [], dict), arguments,
            [clock],
        )  # fmt: skip
        clock.watch(trainer)
        if job.speed:
            speed_up(model, job.device.kind)
        trainer.train()
    return list(clock.timed(WARMUP))


def _model(job: Job, recipe: ResolvedRecipe, layers: int, task_type: str) -> Any:
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    values = {key: value for key, value in job.config.items() if key not in ("model_type", "quantization_config")}
    # Lists of a value a layer are as long as the model is deep.
    deep = int(values["num_hidden_layers"])
    values = {
        key: value[:layers] if isinstance(value, list) and len(value) == deep else value
        for key, value in values.items()
    } | {"num_hidden_layers": layers}
    config = CONFIG_MAPPING[str(job.config["model_type"])].from_dict(values)
    dtype = {2: torch.bfloat16, 4: torch.float32}[job.item_bytes]
    device = torch.device("cuda" if job.device.kind == "cuda" else "cpu")
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=job.attention)
    if quantization := recipe.section("quantization"):
        model = quantize(model, quantization)
    if job.adapter:
        model = add_adapter(model, job.adapter, task_type)
    return model


def _full_rows(job: Job, steps: int) -> list[dict[str, list[int]]]:
    draw, count = random.Random(0), job.batch * job.accumulation * steps
    most = min(1000, int(job.config["vocab_size"]))
    rows = [[draw.randrange(1, most) for _ in range(job.length)] for _ in range(count)]
    return [{"input_ids": row, "labels": row} for row in rows]
