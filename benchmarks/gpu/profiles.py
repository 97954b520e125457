"""Where the slowest step's time goes, kernel by kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.gpu import planned
from benchmarks.gpu.block import Block
from benchmarks.gpu.part import Part
from benchmarks.gpu.place import Place
from benchmarks.gpu.process import Work, watched
from hf_peft_recipes.bench.cell import Cell, run_cell
from hf_peft_recipes.bench.suite import Line

WARMUP, STEPS = 5, 3


def cells(place: Place) -> Sequence[Cell]:
    """Return the cells."""
    if place.dry_run:
        return [Block("qlora", "tiny", 64, ("ours",), warmup=1, steps=1).cell()]
    return [
        replace(Block(recipe, shape, 4096, ("ours",)).cell(), warmup=WARMUP, steps=STEPS)
        for shape in ("8b", "1b")
        for recipe in ("lora", "qlora")
    ]


def run(cell: Cell, place: Place) -> Line:
    """Return the line of a cell; its `measured.profile` has the groups and the kernels."""
    return run_cell(cell, place.scratch, watched(Work(warmup=cell.warmup, profiled=True)))


PART = Part(cells, run, lambda cell, place: 30 + planned.seconds(cell, place), planned.models, planned.wanted)
