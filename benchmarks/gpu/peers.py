"""Ours beside unsloth: matched settings, then each at its best; losses and gradient norms are compared first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.gpu import planned, throughput
from benchmarks.gpu.block import Block, run_block
from benchmarks.gpu.part import Part
from benchmarks.gpu.place import Place
from hf_peft_recipes.bench.suite import Line

CONTENDERS = ("ours", "unsloth")
TOLERANCE = 0.02
"""By how much a loss or a gradient's norm may differ between two that compute the same in bfloat16."""
NO_SITE = "its versions of transformers, TRL and datasets are not ours: name the folder that holds them by --peer_site"


def cells(place: Place) -> Sequence[Block]:
    """Return the comparisons."""
    if place.dry_run:
        return [Block("lora", "tiny", 64, CONTENDERS, warmup=1, steps=1, turns=1)]
    return [
        Block(recipe, shape, 2048, CONTENDERS, best=best)
        for shape in ("8b", "1b")
        for recipe in ("qlora", "lora")
        for best in (False, True)
    ]


def run(block: Block, place: Place) -> Line:
    """Return the line of a comparison; `unavailable` where there are no packages of the other's."""
    if place.peer_site is None:
        return {"status": "unavailable", "error": f"unsloth: {NO_SITE}"}
    sites = {"unsloth": str(place.peer_site.resolve())}
    if not block.best:
        line = run_block(shortened(block), place, sites)
        differences = line["compared"].get("unsloth")
        if line["unavailable"]:
            return line | {"status": "unavailable", "error": "; ".join(line["unavailable"].values())}
        if differences is None or not _agree(differences):
            return line | {"status": "differs", "error": "losses or gradient norms differ, so nothing was timed"}
    return run_block(block, place, sites)


def shortened(block: Block) -> Block:
    """Return the comparison of a few steps, once: for losses and gradient norms alone."""
    return replace(block, warmup=0, steps=min(5, block.warmup + block.steps), turns=1)


def _agree(differences: Line) -> bool:
    found = [differences[key] for key in ("loss_difference", "norm_difference")]
    return bool(differences["same_tokens"]) and all(value is not None and value <= TOLERANCE for value in found)


def _seconds(block: Block, place: Place) -> float:
    # The first look at losses is a turn of its own; without the other's packages nothing is run at all.
    if place.peer_site is None:
        return 0.0
    looks = 0.0 if block.best else len(block.contenders) * planned.run_seconds(shortened(block).cell())
    return looks + throughput.seconds(block, place)


PART = Part(cells, run, _seconds, throughput.models)
