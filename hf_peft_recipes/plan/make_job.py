"""A recipe, the config of its base, a device and data, brought down to the numbers of a `Job`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hf_peft_recipes.device import Device
from hf_peft_recipes.errors import UnplannedError, UserError
from hf_peft_recipes.plan.configs import read_quantization
from hf_peft_recipes.plan.job import ITEM_BYTES, SHARDINGS, Job
from hf_peft_recipes.plan.sizes import FLOAT32
from hf_peft_recipes.spec import ResolvedRecipe
from hf_peft_recipes.spec.objectives import OBJECTIVES, objective_facts
from hf_peft_recipes.spec.quantized import FLOAT8, FOUR, kind_of_base
from hf_peft_recipes.spec.recompute import NOTHING, read_recompute

# It looks at data, and brings along what reads them.
if TYPE_CHECKING:
    from hf_peft_recipes.plan.documents import Documents

DOCUMENT_STEP = 32
"""Tokens by which lengths of documents differ for a kernel: `STEP` of `speed/attention/layout.py`."""
DOCUMENTS_A_ROW = 2
"""Where documents are of all lengths up to a row's: half a row on average."""


def make_job(
    recipe: ResolvedRecipe,
    config: Mapping[str, Any],
    source: str,
    device: Device,
    devices: int = 1,
    sharding: str | None = None,
    documents: Documents | None = None,
    stored: str | None = None,
) -> Job:
    """Return the numbers of a recipe's run.

    Args:
        recipe: resolved for the device.
        config: of the base.
        source: path or Hub id of the base.
        device: that it runs on.
        devices: how many of them.
        sharding: one of SHARDINGS; None for `ddp` where there are several devices.
        documents: of the data, where those were looked at; None takes every row to be full.
        stored: type that the base's files hold, None where it is as the config says.

    Raises:
        UserError: a number of devices below 1, a sharding that is not known.
        UnplannedError: the objective is not planned.
    """
    if not objective_facts(recipe.objective).packs:
        planned = ", ".join(name for name, facts in OBJECTIVES.items() if facts.packs)
        raise UnplannedError(f"there is no plan of {recipe.objective} yet, only of {planned}")
    if devices < 1:
        raise UserError(f"a plan for {devices} devices: at least 1 is needed")
    sharding = sharding or ("ddp" if devices > 1 else "none")
    if sharding not in SHARDINGS:
        raise UserError(f"unknown sharding {sharding!r} (known: {', '.join(SHARDINGS)})")
    training, model = recipe.section("training") or {}, recipe.section("model") or {}
    quantization = recipe.section("quantization") or {}
    kind = kind_of_base(quantization)
    bits, float8 = {None: 0, FOUR: 4}.get(kind, 8), kind == FLOAT8
    double = bool(quantization.get("bnb_4bit_use_double_quant"))
    multiplied = quantization.get("bnb_4bit_compute_dtype")
    if prequantized := read_quantization(config):
        bits, float8, double = prequantized.bits, prequantized.float8, prequantized.double
        multiplied = prequantized.compute_dtype
    stated = _item_bytes(config.get("dtype") or config.get("torch_dtype"))
    autocast = 2 if training.get("bf16") or training.get("fp16") else None
    asked = model.get("dtype")
    length, context = training.get("max_length"), config.get("max_position_embeddings")
    lengths = [number for number in (length, context) if number]
    row_length = int(min(lengths, default=1024))
    checkpointing = bool(training.get("activation_checkpointing", training.get("gradient_checkpointing")))
    return Job(
        source=source,
        config=config,
        item_bytes=stated if asked in (None, "auto") else _item_bytes(asked),
        stored_item_bytes=ITEM_BYTES.get(str(stored), stated),
        autocast_bytes=autocast,
        bits=bits,
        float8=float8,
        double_quantized=double,
        four_bit_bytes=_item_bytes(multiplied),
        prequantized=prequantized is not None,
        adapter=recipe.section("adapter"),
        length=min(row_length, documents.row_length) if documents else row_length,
        batch=int(training.get("per_device_train_batch_size") or 8),
        accumulation=int(training.get("gradient_accumulation_steps") or 1),
        checkpointing=checkpointing,
        recompute=NOTHING if checkpointing else read_recompute(recipe.value("recompute")) or NOTHING,
        optimizer=str(training.get("optim") or "adamw_torch_fused"),
        packed=bool(training.get("packing")),
        supervised=documents.supervised if documents else 1.0,
        device=device,
        speed=recipe.value("speed") != "off",
        devices=devices,
        sharding=sharding,
        attention=model.get("attn_implementation"),
        evaluation=recipe.section("evaluation") or {},
        arguments=training,
        document_lengths=_document_lengths(recipe, training, row_length, documents),
        span=documents.span if documents else None,
        held_out=documents.held_out if documents else None,
    )


def _item_bytes(dtype: Any) -> int:
    """Return the bytes of an element of a dtype, by name; float32 is what upstream takes where none is named."""
    return ITEM_BYTES.get(str(dtype).removeprefix("torch."), FLOAT32)


def _document_lengths(
    recipe: ResolvedRecipe, training: Mapping[str, Any], length: int, documents: Documents | None
) -> int:
    """Return how many lengths the run's kernels meet: one where rows are taken to be full, else as many as it can."""
    if documents is None and recipe.value("data.dataset") is None:
        return 1
    known, a_row = math.ceil(length / DOCUMENT_STEP), float(DOCUMENTS_A_ROW)
    if documents is not None:
        known, a_row = len({math.ceil(one / DOCUMENT_STEP) for one in documents.lengths}), documents.lengths_a_row
    steps = int(training.get("max_steps") or -1)
    rows = steps * int(training.get("gradient_accumulation_steps") or 1)
    return min(known, math.ceil(rows * a_row)) if steps > 0 else known
