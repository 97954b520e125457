"""Full fine-tuning, LoRA and QLoRA: ours beside plain TRL, its defaults and its best flags."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product

from benchmarks.gpu import planned
from benchmarks.gpu.block import Block, run_block
from benchmarks.gpu.part import Part
from benchmarks.gpu.place import Model, Place

CONTENDERS = {
    "lora": ("ours", "trl_best", "trl_defaults"),
    "qlora": ("ours", "trl_qlora"),
    "full": ("ours", "trl_best"),
}


def cells(place: Place) -> Sequence[Block]:
    """Return the comparisons; full fine-tuning of the large model is checkpointed, else no card holds it."""
    if place.dry_run:
        # One whole A B A B, and a turn of each other contender.
        tried = (("qlora", 2), ("lora", 1))
        return [
            Block(recipe, "tiny", 64, CONTENDERS[recipe], warmup=1, steps=1, turns=turns) for recipe, turns in tried
        ]
    order = product(("8b", "1b"), (4096, 2048), ("lora", "qlora", "full"))
    return [
        Block(recipe, shape, length, CONTENDERS[recipe], checkpointing=(recipe, shape) == ("full", "8b"))
        for shape, length, recipe in order
    ]


def seconds(block: Block) -> float:
    """Return how long a comparison takes: each process loads the model and makes its steps."""
    cell = block.cell()
    return block.turns * len(block.contenders) * (planned.seconds(cell) - 20) + 20


def wanted(block: Block, place: Place) -> bool:
    """Return whether ours fits the card, by its plan."""
    return planned.wanted(block.cell(), place)


def models(block: Block) -> Iterable[Model]:
    """Return the one model of a comparison."""
    return [(block.shape, False)]


PART = Part(cells, run_block, seconds, models, wanted)
