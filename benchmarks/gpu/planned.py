"""Planned against measured peaks, and what lies between the tensors and what the process takes, part by part."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.gpu.part import Part
from benchmarks.gpu.place import Model, Place
from benchmarks.gpu.process import Work, watched
from hf_peft_recipes.bench.cell import Cell, plan_cell, run_cell
from hf_peft_recipes.bench.shapes import SHAPES, file_bytes, model_folder
from hf_peft_recipes.bench.suite import Line

WARMUP, STEPS = 2, 3
ABOVE = 1.15
"""Cells that need up to so many times the card's memory are run too: they should run out of it."""
NOT_TENSORS = ("libraries", "fragmentation")
"""Parts of a plan that torch's allocator does not count as allocated."""
ACCUMULATION = 2
"""Micro-batches of a step: gradients lie beside activations from the second on, and more of them only take time."""
START_SECONDS, READ_BYTES_A_SECOND, FLOPS = 25, 1.5e9, 300e12
"""Of a process until it loads, of a model's files, of its steps: rough, on the safe side for a card of this class."""

FIRST = (
    ("lora", "8b", 2048, False), ("qlora", "8b", 2048, False), ("full", "1b", 2048, False), ("qlora", "8b", 4096, True),
    ("lora", "8b", 4096, True), ("lora", "1b", 4096, False), ("qlora", "1b", 4096, False), ("full", "1b", 4096, True),
    ("qlora", "32b", 2048, True), ("full", "8b", 2048, True), ("lora", "8b", 8192, False),
    ("qlora", "32b", 4096, False), ("lora", "3b", 4096, False), ("full", "3b", 2048, True),
    ("lora", "0.5b", 2048, False),
)  # fmt: skip
"""Cells that say most, a corner of the table each: recipe, shape, length, checkpointing."""
TABLE = tuple(
    product(("lora", "qlora", "full"), ("8b", "1b", "3b", "32b", "0.5b"), (4096, 2048, 512, 8192), (False, True))
)


def cells(place: Place) -> Sequence[Cell]:
    """Return the cells; the largest shape is there for QLoRA alone, from files in NF4."""
    if place.dry_run:
        tried = (("lora", False, False), ("qlora", True, True), ("full", False, False))
        return [_cell(recipe, "tiny", 64, on, files, steps=1, warmup=1) for recipe, on, files in tried]
    named = [*FIRST, *(row for row in sorted(TABLE, key=_rank) if row not in FIRST)]
    return [_cell(*row, row[1] == "32b") for row in named if row[1] != "32b" or row[0] == "qlora"]


def run(cell: Cell, place: Place) -> Line:
    """Return the line of a cell, with its comparison."""
    line = run_cell(cell, place.scratch, watched(Work(warmup=cell.warmup)))
    return line | ({"compared": compare(line)} if line["status"] == "done" else {})


def compare(line: Line) -> dict[str, Any]:
    """Return planned beside measured bytes: of tensors, and of what surrounds them.

    `allocated` is what tensors took at the most after warm-up, on a CPU what was resident; `off` by how much the plan
    is above it.

    Args:
        line: of a cell that is done.
    """
    parts, measured = line["planned"].get("parts", {}), line["measured"]
    peaks, held = measured["peaks"], measured["held"]
    on_gpu = peaks["allocated_bytes"] is not None
    planned = sum(size for part, size in parts.items() if not (on_gpu and part in NOT_TENSORS))
    found = peaks["allocated_bytes"] if on_gpu else peaks["host_bytes"]
    compared: dict[str, Any] = {"planned": planned, "allocated": found, "off": planned / found - 1 if planned else None}
    compared["parts"] = {
        "frozen": [parts.get("weights", 0) + parts.get("weights_quantized", 0), held["frozen"]],
        "trained": [parts.get("adapters", 0), held["trained"]],
        "optimizer": [parts.get("optimizer", 0), held["optimizer"]],
    }
    if line["cell"]["recipe"] == "full":
        compared["parts"] |= {"frozen": [0, held["frozen"]], "trained": [parts.get("weights", 0), held["trained"]]}
    if on_gpu:
        compared["gap"] = {
            "fragmentation": [parts.get("fragmentation", 0), peaks["reserved_bytes"] - peaks["allocated_bytes"]],
            "context": [parts.get("libraries", 0), held["context"]],
            "cublas_workspace": [parts.get("workspace", 0), held["cublas_workspace"]],
            "process": [line["planned"].get("phases", {}).get("train"), peaks["device_used_bytes"]],
        }
    return compared


def wanted(cell: Cell, place: Place) -> bool:
    """Return whether the cell fits the card, or is just above it, by its plan."""
    if place.dry_run:
        return True
    planned = plan_cell(cell, write_config(place.scratch / "configs", cell)).get("total_bytes")
    return planned is None or planned <= ABOVE * place.device.memory_bytes


def write_config(folder: Path, cell: Cell) -> Path:
    """Return a folder with nothing but the config.json of the cell's shape: what a plan reads."""
    target = model_folder(folder, cell.shape)
    target.mkdir(parents=True, exist_ok=True)
    (target / "config.json").write_text(json.dumps({**SHAPES[cell.shape], "dtype": "bfloat16"}), encoding="utf-8")
    return target


def run_seconds(cell: Cell) -> float:
    """Return how long one process takes, roughly: imports, the model loaded, the steps."""
    tokens = (cell.warmup + cell.steps) * int(cell.overrides["gradient_accumulation_steps"]) * cell.length
    # Operations a weight and token: forward and back 4 with frozen weights, 2 more for their gradients or a repetition.
    operations = (6 if cell.recipe == "full" or cell.checkpointing else 4) * file_bytes(cell.shape) / 2 * tokens
    return START_SECONDS + file_bytes(cell.shape, cell.quantized_files) / READ_BYTES_A_SECOND + operations / FLOPS


def seconds(cell: Cell, place: Place) -> float:
    """Return how long a cell takes, its model included."""
    return run_seconds(cell) + place.making_seconds(models(cell))


def models(cell: Cell) -> Iterable[Model]:
    """Return the one model of a cell."""
    return [(cell.shape, cell.quantized_files)]


def _cell(
    recipe: str, shape: str, length: int, on: bool, files: bool, steps: int = STEPS, warmup: int = WARMUP
) -> Cell:
    return replace(
        Cell(recipe, shape, length, on, steps=steps, warmup=warmup, scored=0, quantized_files=files),
        overrides={"gradient_accumulation_steps": ACCUMULATION},
    )


def _rank(row: tuple[str, str, int, bool]) -> tuple[int, int]:
    """Return where a cell of the table stands: shape by shape, so that a model is made once, the long ones first."""
    _, shape, length, _ = row
    return ("8b", "1b", "3b", "32b", "0.5b").index(shape), (4096, 2048, 512, 8192).index(length)


PART = Part(cells, run, seconds, models, wanted)
