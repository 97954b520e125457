"""Engines that carry a run over several processes: what is asked for, what does not go with it, what came up.

accelerate decides in three places: its launcher by a file and flags, the launched process by variables, the trainer by
its arguments. Where they differ it takes one of them without a word, so each is read here and compared.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from hf_peft_recipes.errors import LaunchError, UserError
from hf_peft_recipes.spec import ResolvedRecipe
from hf_peft_recipes.spec.quantized import FLOAT8, kind_of_base

SHARDING = ("FSDP", "DEEPSPEED")
"""Engines, by accelerate's names, under which a process may hold a part of the model alone."""

LOOKING_STARTS = ("eva", "corda", "lora_ga", "pissa", "olora", "loftq", "orthogonal", "mica")
"""Values of `init_lora_weights` that begin with the base's weights, or with what it makes of data."""

VIRTUAL = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", "CPT")


@dataclass(frozen=True)
class Asked:
    """What a configuration asks of accelerate."""

    kind: str = "NO"
    """accelerate's name of the engine: `NO`, `MULTI_GPU`, `FSDP`, `DEEPSPEED` …"""
    num_processes: int = 1
    """On all machines together."""
    fsdp_version: int = 1
    zero_stage: int = 0
    loads_once: bool = False
    """Whether the first process alone reads the base: the others hold nothing of it until it is split."""

    @property
    def name(self) -> str:
        """Return what a user calls the engine."""
        if self.kind == "FSDP":
            return f"FSDP{self.fsdp_version}"
        return f"DeepSpeed ZeRO-{self.zero_stage}" if self.kind == "DEEPSPEED" else self.kind


def read_config(path: Path) -> Asked:
    """Return what an accelerate configuration asks for.

    Args:
        path: of the file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        # As accelerate reads it.
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"accelerate configuration {str(path)!r}: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise UserError(f"accelerate configuration {str(path)!r} holds no keys and values")
    fsdp, deepspeed = found.get("fsdp_config") or {}, found.get("deepspeed_config") or {}
    return Asked(
        kind=str(found.get("distributed_type", "NO")).upper(),
        num_processes=_number(found.get("num_processes"), 1),
        fsdp_version=_number(fsdp.get("fsdp_version"), 1),
        zero_stage=_stage(deepspeed.get("zero_stage"), deepspeed.get("deepspeed_config_file")),
        loads_once=_true(fsdp.get("fsdp_cpu_ram_efficient_loading")),
    )


def read_environment(environment: Mapping[str, str]) -> Asked:
    """Return what the launcher's variables ask for.

    Args:
        environment: of a process that accelerate has started.
    """
    world = _number(environment.get("WORLD_SIZE"), 1)
    if _true(environment.get("ACCELERATE_USE_FSDP")):
        return Asked(
            "FSDP", world, _number(environment.get("FSDP_VERSION"), 1),
            loads_once=_true(environment.get("FSDP_CPU_RAM_EFFICIENT_LOADING")),
        )  # fmt: skip
    if _true(environment.get("ACCELERATE_USE_DEEPSPEED")):
        file = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
        return Asked(
            "DEEPSPEED", world, zero_stage=_stage(environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE"), file)
        )  # fmt: skip
    return Asked("MULTI_GPU" if world > 1 else "NO", world)


def check_recipe(recipe: ResolvedRecipe, asked: Asked) -> None:
    """Raise a UserError where a recipe cannot train on the engine that it is started on, before anything is loaded.

    Args:
        recipe: with every value decided.
        asked: which engine.
    """
    if asked.kind == "DEEPSPEED" and find_spec("deepspeed") is None:
        raise UserError(
            f"{asked.name} comes from a package that is not installed: pip install 'hf-peft-recipes[deepspeed]'"
        )
    for refusal in REFUSED:
        if refusal.engine(asked) and (found := refusal.recipe(recipe)):
            raise UserError(f"recipe {recipe.name!r}: {found} does not go with {asked.name}: {refusal.reason}")


def check_came_up(asked: Asked, accelerator: Any, arguments: Any) -> None:
    """Raise a LaunchError where the engine that came up is not the one that was asked for.

    Args:
        asked: by the launcher's variables.
        accelerator: of the trainer.
        arguments: of the trainer.
    """
    kind = str(accelerator.distributed_type.value)
    if asked.kind in SHARDING and kind != asked.kind:
        raise LaunchError(f"{asked.name} was asked for and {kind} came up; {asked.kind} has no path on this device")
    if kind in SHARDING and asked.kind != kind:
        raise LaunchError(f"the trainer's arguments bring {kind} up, which the launcher was not asked for")
    if kind == "FSDP":
        version = int(accelerator.state.fsdp_plugin.fsdp_version)
        if version != asked.fsdp_version:
            raise LaunchError(f"{asked.name} was asked for and FSDP{version} came up")
    if kind == "DEEPSPEED":
        stage = int(accelerator.state.deepspeed_plugin.zero_stage)
        if stage != asked.zero_stage:
            raise LaunchError(f"{asked.name} was asked for and ZeRO-{stage} came up")
    wanted = "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "no"
    if accelerator.mixed_precision != wanted:
        raise LaunchError(
            f"the recipe asks for mixed precision {wanted!r} and {accelerator.mixed_precision!r} came up, which the "
            "launcher's configuration says; leave it out there (mixed_precision: 'no'): the recipe decides"
        )


@dataclass(frozen=True)
class Refusal:
    """What of a recipe an engine cannot train, and why."""

    engine: Callable[[Asked], bool]
    recipe: Callable[[ResolvedRecipe], str | None]
    """Returns the value that does not go with it, by its name; None where there is none."""
    reason: str


def _splits(asked: Asked) -> bool:
    """Return whether each process holds a part of the base's weights."""
    return asked.kind == "FSDP" or asked.zero_stage == 3


def _on_cpu(recipe: ResolvedRecipe) -> str | None:
    return "training.use_cpu true" if recipe.value("training.use_cpu") else None


def _bytes_of_4_bits(recipe: ResolvedRecipe) -> str | None:
    if not recipe.value("quantization.load_in_4bit"):
        return None
    stored, wanted = recipe.value("quantization.bnb_4bit_quant_storage"), _sharded_dtype(recipe)
    if str(stored).removeprefix("torch.") == wanted:
        return None
    return f"quantization.bnb_4bit_quant_storage {stored or 'uint8'} (--bnb_4bit_quant_storage {wanted} does)"


def _sharded_dtype(recipe: ResolvedRecipe) -> str:
    """Return the dtype in which parameters are gathered: that of mixed precision, else the base's own."""
    if recipe.value("training.bf16"):
        return "bfloat16"
    return "float16" if recipe.value("training.fp16") else str(recipe.value("model.dtype") or "float32")


def _in_8_bits(recipe: ResolvedRecipe) -> str | None:
    return "quantization.load_in_8bit" if recipe.value("quantization.load_in_8bit") else None


def _in_floats_of_8_bits(recipe: ResolvedRecipe) -> str | None:
    kind = kind_of_base(recipe.section("quantization"))
    return f"quantization.quant_type {recipe.value('quantization.quant_type')}" if kind == FLOAT8 else None


def _looking_start(recipe: ResolvedRecipe) -> str | None:
    start = str(recipe.value("adapter.init_lora_weights")).lower()
    return f"adapter.init_lora_weights {start}" if start.partition("_niter_")[0] in LOOKING_STARTS else None


def _projecting_optimizer(recipe: ResolvedRecipe) -> str | None:
    optimizer = str(recipe.value("training.optim"))
    return f"training.optim {optimizer}" if optimizer.startswith(("galore", "apollo", "lomo", "adalomo")) else None


def _single_tokens(recipe: ResolvedRecipe) -> str | None:
    if str(recipe.value("adapter.peft_type")).upper() == "TRAINABLE_TOKENS":
        return "adapter.peft_type TRAINABLE_TOKENS"
    return "adapter.trainable_token_indices" if recipe.value("adapter.trainable_token_indices") else None


def _virtual_tokens(recipe: ResolvedRecipe) -> str | None:
    kind = str(recipe.value("adapter.peft_type")).upper()
    return f"adapter.peft_type {kind}" if kind in VIRTUAL else None


REFUSED = (
    Refusal(
        lambda asked: asked.kind == "FSDP", _on_cpu,
        "it has no path on a CPU (accelerate makes DDP of FSDP2 there, and FSDP1 raises); --accelerate_config ddp "
        "joins processes on CPUs",
    ),
    Refusal(
        _splits, _bytes_of_4_bits,
        "weights in 4 bits are split as the numbers that they are stored as: accelerate leaves bytes whole in every "
        "process, and what is not of the dtype that parameters are gathered in is cast to it, and lost",
    ),
    Refusal(
        _splits, _in_8_bits,
        "torch cannot split weights in 8 bits; qlora with --bnb_4bit_quant_storage bfloat16 goes",
    ),
    Refusal(
        _splits, _in_floats_of_8_bits,
        "a base in 8-bit floats has not been tried in parts; lora and qlora with --bnb_4bit_quant_storage bfloat16 go",
    ),
    Refusal(
        lambda asked: asked.loads_once or asked.zero_stage == 3, _looking_start,
        "it begins with the base's weights, of which a process may not hold any yet; --init_lora_weights true needs "
        "none, --accelerate_config ddp holds all of them",
    ),
    Refusal(
        _splits, _single_tokens,
        "an embedding whose rows train one by one cannot be tied to its head again once it is split; "
        "--accelerate_config ddp holds it whole",
    ),
    Refusal(
        _splits, _virtual_tokens,
        "PEFT reads its virtual tokens outside of a pass through the model too, where a process holds a part of them; "
        "lora and --accelerate_config ddp do",
    ),
    Refusal(
        lambda asked: asked.kind == "DEEPSPEED", _projecting_optimizer,
        "it looks at matrices, and DeepSpeed lets an optimizer step on flat parts alone; adamw_torch_fused does",
    ),
)  # fmt: skip
"""Held to what accelerate 1.15, torch 2.13 and DeepSpeed 0.19 do, see `tests/test_engines.py`."""


def _number(value: Any, otherwise: int) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        return otherwise


def _true(value: Any) -> bool:
    return str(value).lower() == "true"


def _stage(value: Any, file: Any) -> int:
    """Return the ZeRO stage of a DeepSpeed section; a file of DeepSpeed's own goes before it."""
    if file and str(file) != "none":
        try:
            found = json.loads(Path(str(file)).expanduser().read_text(encoding="utf-8"))
            return _number(found.get("zero_optimization", {}).get("stage"), 0)
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(f"DeepSpeed configuration {str(file)!r}: {' '.join(str(error).split())}") from None
    # What accelerate takes where nothing is said; `0` of a configuration without DeepSpeed asks for nothing.
    return _number(value, 2 if value is not None else 0)
