"""Who is compared: what builds a trainer for the same work. All of them are watched by the same code.

What is asked of a contender is one function, `(work, folder) -> Built`: a trainer of transformers that is ready to
train `work` and writes nowhere but into the folder. It raises Unavailable where it cannot run here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.gpu.process import Work
from benchmarks.gpu.switches import SWITCHES


class Unavailable(Exception):
    """The contender cannot run here; the message says why."""


@dataclass(frozen=True)
class Built:
    """A trainer that is ready."""

    trainer: Any
    speed: Sequence[str] = ()
    """Faster paths of ours that it takes."""
    recompute: str = "off"
    """What of ours is computed again; what a rival does is its own."""


Builder = Callable[[Work, Path], Built]


def build_ours(work: Work, folder: Path) -> Built:
    """Return our trainer, with all that a run has: proof, clock and faster paths."""
    from hf_peft_recipes.api import resolve_recipe
    from hf_peft_recipes.assembly import prepare
    from hf_peft_recipes.bench.cell import overrides_of
    from hf_peft_recipes.preflight import RunRequest, examine

    recipe = resolve_recipe(work.recipe, overrides_of(work.options)).resolved
    request = RunRequest(output_dir=folder / "out", command="benchmarks.gpu", progress=False)
    prepared = prepare(recipe, request, examine(recipe, request))
    return Built(prepared.trainer, prepared.speed, str(prepared.recompute))


def build_without(work: Work, folder: Path, switch: Callable[[], None]) -> Built:
    """Return our trainer without one of its faster paths.

    Args:
        work: to do.
        folder: to write into.
        switch: leaves the path out, for the rest of this process.
    """
    switch()
    return build_ours(work, folder)


def build_trl(work: Work, folder: Path, name: str) -> Built:
    """Return plain TRL's trainer, with the settings of its line in the table of `benchmarks.peers`.

    Args:
        work: to do.
        folder: to write into.
        name: of the contender there.
    """
    try:
        peers, jobs, plain = (import_module(f"benchmarks.peers.{room}") for room in ("contenders", "job", "plain_trl"))
        contender, build = peers.CONTENDERS[name], plain.build_trainer
    except (ImportError, AttributeError, KeyError) as error:
        raise Unavailable(f"benchmarks.peers has no {name}: {error}") from None
    if work.recipe not in ("lora", "qlora"):
        raise Unavailable(f"benchmarks.peers builds no {work.recipe} with plain TRL")
    settings = dict(contender.settings)
    # These rows are plain text, which carries loss from end to end.
    settings["training"] = {
        **settings.get("training", {}), "assistant_only_loss": False,
        "gradient_checkpointing": work.options["gradient_checkpointing"],
    } if not contender.unmatched else {}  # fmt: skip
    job = jobs.Job(
        recipe=work.recipe, model=work.options["model"], rows=f"{work.options['dataset']}/train.jsonl",
        steps=work.options["max_steps"], warmup=work.warmup, matched=not contender.unmatched, settings=settings,
        length=work.options["max_length"], batch=1, accumulation=work.accumulation,
    )  # fmt: skip
    return Built(build(job, str(folder)))


def build_unsloth(work: Work, folder: Path) -> Built:
    """Return unsloth's model under TRL's trainer, as unsloth's documentation has it; not run by anybody yet."""
    try:
        unsloth = import_module("unsloth")
    except ImportError as error:
        raise Unavailable(f"unsloth is not installed: {error}") from None
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    options = work.options
    checkpointing: Any = "unsloth" if work.best else bool(options["gradient_checkpointing"])
    model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
        model_name=options["model"], max_seq_length=options["max_length"], load_in_4bit=work.recipe == "qlora",
        dtype=None,
    )  # fmt: skip
    model = unsloth.FastLanguageModel.get_peft_model(
        model, r=16, lora_alpha=32, lora_dropout=0.0, bias="none", use_gradient_checkpointing=checkpointing,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    )  # fmt: skip
    arguments = SFTConfig(
        output_dir=str(folder), max_steps=options["max_steps"], max_length=options["max_length"], packing=True,
        per_device_train_batch_size=1, gradient_accumulation_steps=work.accumulation, learning_rate=2e-4,
        lr_scheduler_type="cosine", warmup_steps=0, optim="adamw_torch_fused", bf16=True, seed=42,
        report_to="none", save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    rows = load_dataset("json", data_files=f"{options['dataset']}/train.jsonl", split="train")
    return Built(SFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer))


BUILDERS: dict[str, Builder] = {
    "ours": build_ours,
    "trl_best": partial(build_trl, name="trl_best"),
    "trl_defaults": partial(build_trl, name="trl_defaults"),
    "trl_qlora": partial(build_trl, name="trl_qlora"),
    "unsloth": build_unsloth,
    **{name: partial(build_without, switch=switch) for name, switch in SWITCHES.items()},
}
"""Contender to what builds its trainer."""

IMPORTED_FIRST = {"unsloth": "unsloth"}
"""Contender to a package that changes torch, transformers and TRL as it is imported, and so must be before them."""
