"""What each of our faster paths brings: ours, and ours without it, in turns on documents of many lengths."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from benchmarks.gpu.block import Block, run_block
from benchmarks.gpu.part import Part
from benchmarks.gpu.place import Place
from benchmarks.gpu.throughput import models, seconds, wanted

PAIRS = {
    "lora": (
        ("speed_off", "no_lora_linear"), ("no_document_attention", "no_varlen"), ("no_loss_head", "no_gated_mlp"),
        ("no_rms_norm", "no_rotary"), ("no_qkv",),
    ),
    "qlora": (("speed_off", "no_nf4_kernel"), ("no_lora_linear", "no_gated_mlp")),
}  # fmt: skip
"""Recipe to what is left out of it, two at a time: more would not fit into eight minutes."""


def cells(place: Place) -> Sequence[Block]:
    """Return the comparisons, those of the small model first: they show most of what is not matrix products."""
    if place.dry_run:
        # A whole A B A B, and a turn of every other switch.
        return [
            Block("lora", "tiny", 64, ("ours", "speed_off"), warmup=1, steps=1, lengths="skewed"),
            *(
                Block(recipe, "tiny", 64, ("ours", *pair), warmup=1, steps=1, turns=1, lengths="skewed")
                for recipe, pairs in PAIRS.items()
                for pair in pairs[recipe == "lora" :]
            ),
        ]
    return [
        Block(recipe, shape, 4096, ("ours", *pair), lengths="skewed")
        for shape, recipe in product(("1b", "8b"), PAIRS)
        for pair in PAIRS[recipe]
    ]


PART = Part(cells, run_block, seconds, models, wanted)
