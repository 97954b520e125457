"""Full fine-tuning, LoRA and QLoRA: ours beside plain TRL, its defaults and its best flags."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product

from benchmarks.gpu import planned
from benchmarks.gpu.block import Block, run_block
from benchmarks.gpu.part import Part
from benchmarks.gpu.place import Model, Place

RIVALS = {"lora": ("trl_best", "trl_defaults"), "qlora": ("trl_qlora",), "full": ("trl_best",)}
"""Recipe to those that ours is held against, one at a time."""


def cells(place: Place) -> Sequence[Block]:
    """Return the comparisons; full fine-tuning of the large model is checkpointed, else no card holds it."""
    if place.dry_run:
        # One whole A B A B, and a turn of each other contender.
        return [
            Block(recipe, "tiny", 64, ("ours", *RIVALS[recipe]), warmup=1, steps=1, turns=turns)
            for recipe, turns in (("qlora", 2), ("lora", 1))
        ]
    return [
        Block(recipe, shape, length, ("ours", rival), checkpointing=(recipe, shape) == ("full", "8b"))
        for shape, length, recipe in product(("8b", "1b"), (4096, 2048), RIVALS)
        for rival in RIVALS[recipe]
    ]


def seconds(block: Block, place: Place) -> float:
    """Return how long a comparison takes: each process loads the model and makes its steps."""
    runs = block.turns * len(block.contenders)
    return runs * planned.run_seconds(block.cell()) + place.making_seconds(models(block))


def wanted(block: Block, place: Place) -> bool:
    """Return whether ours fits the card, by its plan."""
    return planned.wanted(block.cell(), place)


def models(block: Block) -> Iterable[Model]:
    """Return the one model of a comparison."""
    return [(block.shape, False)]


PART = Part(cells, run_block, seconds, models, wanted)
