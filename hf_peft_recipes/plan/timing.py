"""How fast a run will be, timed here before its weights are loaded: few of its layers, with random weights.

Layers that are alike take the same time, so what few of them and some more take tells what all will. What is timed is
what would run: transformers' layers, PEFT's adapters, TRL's trainer, packing, the faster paths, the optimizer.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerCallback

from hf_peft_recipes.adapters import add_adapter
from hf_peft_recipes.data import PreparedData
from hf_peft_recipes.device import detect_device
from hf_peft_recipes.embedded import MODEL_DIR
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.heads import find_head
from hf_peft_recipes.measure.clock import Step, StepClock
from hf_peft_recipes.methods import settings
from hf_peft_recipes.models import load_tokenizer, quantize
from hf_peft_recipes.objectives import find_objective
from hf_peft_recipes.plan.documents import Documents
from hf_peft_recipes.plan.job import Job
from hf_peft_recipes.spec import ResolvedRecipe
from hf_peft_recipes.spec.quantized import section_of
from hf_peft_recipes.spec.recompute import NOTHING, Recompute
from hf_peft_recipes.speed import recompute, speed_up
from hf_peft_recipes.upstream_noise import quiet

FEW, MORE = 1, 4
"""Numbers of layers that are timed where all layers are alike, of groups of layers where they take turns."""
WARMUP, STEPS = (2, 3.0), (2, 3.0)
"""Fewest steps, and fewest seconds, that warm up and that are timed, each of the two times that a model is.

Kernels are made for the lengths that are met first, and the heap grows to what a step needs: of small models that takes
longer than a step.
"""
MOST_STEPS = 1000
ROWS_OF_STEPS = 8
"""Steps whose rows are made; they come again."""
LOADS = ("adapter_name_or_path",)
"""What of an adapter's section is about weights that exist."""


@dataclass(frozen=True)
class Timing:
    """What steps of the whole model will take on one device of this machine."""

    tokens_per_second: float
    """Real tokens, padding left out."""
    step_seconds: float
    """Of an optimizer step, all its micro-batches."""
    layers: tuple[int, ...]
    """Numbers of layers that were timed."""
    recompute_factor: float = 1.0
    """Time of a step, against one that computes nothing again."""


def time_step(job: Job, recipe: ResolvedRecipe, documents: Documents | None = None) -> Timing:
    """Return what an optimizer step of the whole model takes on this machine.

    Args:
        job: the run in numbers.
        recipe: that runs.
        documents: of the data, whose lengths and share of tokens with loss the timed rows have; None for rows that are
            full to the last token.

    Raises:
        UserError: the plan is for a device that is not here.
    """
    here = detect_device()
    if (job.device.kind, job.device.name) != (here.kind, here.name):
        raise UserError(f"what can be timed here is {here.describe()}, and the plan is for {job.device.describe()}")
    layers, period = int(job.config["num_hidden_layers"]), layer_period(job.config)
    numbers = (FEW * period, MORE * period) if layers > MORE * period else (layers,)
    rows = _rows(job, documents)
    most, amount = numbers[-1], job.recompute
    # What a run may compute again is timed in all layers, one kind after the other.
    kinds = (amount.blocks, Recompute(most, 0, amount.offloads)), (amount.feed_forwards, Recompute(feed_forwards=most))
    again = [(number, kind) for number, kind in kinds if number]
    models = [*((number, NOTHING) for number in numbers), *((most, kind) for _, kind in again)]
    timed: dict[tuple[int, Recompute], list[Step]] = {model: [] for model in models}
    with quiet():
        # There and back: a machine that becomes slower meanwhile does so for all of them.
        for model in (*models, *reversed(models)):
            timed[model] += _steps(job, recipe, *model, rows)
    seconds = {model: _seconds_a_token(steps) for model, steps in timed.items()}
    kept = [seconds[number, NOTHING] for number in numbers]
    keeping_all = kept[-1]
    if len(numbers) > 1:
        keeping_all += (layers - most) * (kept[1] - kept[0]) / (most - numbers[0])
    whole = keeping_all + sum(number * (seconds[most, kind] - kept[-1]) / most for number, kind in again)
    tokens = statistics.median(step.tokens for step in timed[most, NOTHING])
    return Timing(1 / whole, tokens * whole, numbers, whole / keeping_all)


def _seconds_a_token(steps: Sequence[Step]) -> float:
    # Where the rows begin again a step has fewer.
    return statistics.median(step.seconds / step.tokens for step in steps)


def layer_period(config: Any) -> int:
    """Return after how many layers their kinds repeat: 1 where all are alike.

    Args:
        config: values of a config.json; `layer_types` names the attention of every layer.
    """
    kinds = list(config.get("layer_types") or [])
    return next((step for step in range(1, len(kinds)) if kinds[step:] == kinds[:-step]), 1)


def _steps(
    job: Job, recipe: ResolvedRecipe, layers: int, amount: Recompute, rows: Sequence[dict[str, list[int]]]
) -> list[Step]:
    """Return the timed steps of the model with so many layers, so many of which are computed again."""
    from datasets import Dataset
    from transformers import set_seed

    objective = find_objective(recipe.objective)
    set_seed(0)
    model = _model(job, recipe, layers, find_head(recipe.objective).TASK_TYPE)
    with tempfile.TemporaryDirectory() as folder:
        alone = {
            "eval_strategy": "no", "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
            "push_to_hub": False, "max_steps": MOST_STEPS, "max_length": job.length, "output_dir": folder,
        }  # fmt: skip
        clock, enough = StepClock(), _Enough()
        trainer = objective.build_trainer(
            model, load_tokenizer({"name_or_path": str(MODEL_DIR)}),
            PreparedData(Dataset.from_list(list(rows)), None, [], dict),
            objective.training_arguments({**job.arguments, **alone}), [clock, enough],
        )  # fmt: skip
        for callback in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(callback)
        clock.watch(trainer)
        if job.speed:
            speed_up(model, job.device.kind, compiled=bool(job.arguments.get("torch_compile")))
        recompute.install(model, amount)
        trainer.train()
    return list(clock.timed(enough.warmup))


class _Enough(TrainerCallback):
    """Ends training when steps have been timed for long enough."""

    def __init__(self) -> None:
        self.warmup = 0
        """Number of the steps that have warmed up."""
        self._since, self._start = 0, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start warming up."""
        self._start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Go from warming up to timing, and from timing to the end."""
        steps, seconds = WARMUP if not self.warmup else STEPS
        if state.global_step - self._since < steps or time.perf_counter() - self._start < seconds:
            return
        control.should_training_stop = bool(self.warmup)
        self.warmup = self.warmup or state.global_step
        self._since, self._start = state.global_step, time.perf_counter()


def _model(job: Job, recipe: ResolvedRecipe, layers: int, task_type: str) -> Any:
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    deep = int(job.config["num_hidden_layers"])
    # Lists of a value a layer are as long as the model is deep.
    values = {
        key: value[:layers] if isinstance(value, list) and len(value) == deep else value
        for key, value in job.config.items()
        if key not in ("model_type", "quantization_config")
    }
    config = CONFIG_MAPPING[str(job.config["model_type"])].from_dict({**values, "num_hidden_layers": layers})
    dtype = {2: torch.bfloat16, 4: torch.float32}[job.item_bytes]
    with torch.device("cuda" if job.device.kind == "cuda" else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=job.attention)
    # A base whose files are quantised says how in its config.
    told = job.config.get("quantization_config") or {}
    if quantization := recipe.section("quantization") or section_of(told):
        model = quantize(model, quantization)
    if job.adapter:
        model = add_adapter(
            model, settings({key: job.adapter[key] for key in job.adapter if key not in LOADS}), task_type
        )
    return model


def _rows(job: Job, documents: Documents | None, seed: int = 0) -> list[dict[str, list[int]]]:
    """Return token rows for some steps of a timing, which are met again after that: as the data are, or full."""
    draw = random.Random(seed)
    count, words = job.batch * job.accumulation * ROWS_OF_STEPS, min(1000, int(job.config["vocab_size"]))
    lengths = [job.length] * count
    if documents:
        # Rows that are packed of few documents are less full than those of many.
        known = documents.lengths
        many = -(-5 * count * len(known) // (4 * documents.row_count))
        lengths = draw.sample(known, many) if many <= len(known) else draw.choices(known, k=many)
    rows = []
    for length in lengths:
        ids = [draw.randrange(1, words) for _ in range(length)]
        without_loss = round((1 - job.supervised) * length)
        rows.append({"input_ids": ids, "labels": [-100] * without_loss + ids[without_loss:]})
    return rows
