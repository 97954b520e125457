"""What must work before anything is measured: 4 bits, a bare step, two steps of every recipe, adapters' round trips.

On one card FSDP2 splits a model over one process: what is then gathered, saved and certified is what it is on more.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.part import Part
from benchmarks.gpu.place import Model, Place
from benchmarks.gpu.process import run_task
from hf_peft_recipes.api import get_recipe, list_recipes
from hf_peft_recipes.bench.cell import train_verb, used_optimizer
from hf_peft_recipes.bench.shapes import make_model
from hf_peft_recipes.bench.suite import Line
from hf_peft_recipes.fresh_process import outcome

ROUND_TRIPS = ("qlora", "lora", "full")
"""Recipes whose results a fresh process loads again and compares."""


@dataclass(frozen=True)
class Check:
    """One finding, or two steps of one recipe."""

    kind: str
    """`nf4`, `bare_step`, `paths`, `two_steps`, or `split`: two steps of a model that FSDP2 has split."""
    recipe: str = ""
    shape: str = "embedded"
    length: int = 0
    certified: bool = False

    @property
    def name(self) -> str:
        """`two_steps-qlora-certified`."""
        words = [self.kind, self.recipe, self.shape if self.shape != "embedded" else ""]
        return "-".join([word for word in words if word] + (["certified"] if self.certified else []))


def cells(place: Place) -> Sequence[Check]:
    """Return the checks; the recipes are those of the registry."""
    shape, length = ("tiny", 64) if place.dry_run else ("1b", 2048)
    found = [
        Check("nf4", shape=shape),
        Check("bare_step", "lora", shape, length),
        Check("bare_step", "qlora", shape, length),
        Check("paths", "lora", shape, length),
        Check("paths", "qlora", shape, length),
    ]  # fmt: skip
    # The tests train every recipe on the CPU; here one of each kind is enough to try.
    certified, names = (ROUND_TRIPS[:1], ["qlora", "full"]) if place.dry_run else (ROUND_TRIPS, list_recipes())
    names = sorted(names, key=lambda name: (name not in certified, name))
    # FSDP2 has no path on a CPU.
    split = [] if place.dry_run else [Check("split", name, certified=True) for name in ROUND_TRIPS]
    return [*found, *split, *(Check("two_steps", name, certified=name in certified) for name in names)]


def run(check: Check, place: Place) -> Line:
    """Return what the check found."""
    with tempfile.TemporaryDirectory(dir=place.scratch) as folder:
        return (
            _two_steps(check, Path(folder))
            if check.kind in ("two_steps", "split")
            else _check(check, place, Path(folder))
        )


def _check(check: Check, place: Place, folder: Path) -> Line:
    asked: dict[str, Any] = {"check": check.kind, "model": str(make_model(place.models, check.shape))}
    if check.kind == "nf4":
        asked["quantized"] = str(make_model(place.models, check.shape, quantized=True))
    else:
        asked |= {"length": check.length, "quantized": check.recipe == "qlora"}
    finished, found = run_task("check", asked, folder)
    line = outcome(finished, found)
    findings = (found or {}).get("findings", [])
    if wrong := [finding["name"] for finding in findings if not finding["ok"]]:
        line = {"status": "failed", "error": f"not as expected: {', '.join(wrong)}"}
    return {**line, "findings": findings}


def _two_steps(check: Check, folder: Path) -> Line:
    """Return the outcome of a run on the embedded demo, with its certificate where that is asked for."""
    asked = str(get_recipe(check.recipe).resolved.value("training.optim"))
    options = {
        "max_steps": 2, "eval_strategy": "no", "save_strategy": "no", "evaluation.max_rows": 4,
        "data.validation_rows": 8, "optim": used_optimizer(asked), "certify": "auto" if check.certified else "off",
    }  # fmt: skip
    if check.kind == "split":
        options |= {"accelerate_config": "fsdp2", "num_processes": 1}
        if check.recipe == "qlora":
            options["bnb_4bit_quant_storage"] = "bfloat16"
    finished, record = train_verb(check.recipe, options, folder)
    line = {**outcome(finished, record), "optimizer": {"asked": asked, "used": options["optim"]}}
    if record and line["status"] == "done":
        line["measured"], line["losses"] = record["measured"], record["loss_curve"]
        line["certificate"] = (record.get("certificate") or {}).get("status")
    return line


def _models(check: Check) -> Iterable[Model]:
    kinds = {"nf4": (False, True), "bare_step": (False,), "paths": (False,), "two_steps": (), "split": ()}[check.kind]
    return [(check.shape, quantized) for quantized in kinds]


def _seconds(check: Check, place: Place) -> float:
    return (60.0 if check.certified else 40.0) + place.making_seconds(_models(check))


PART = Part(cells, run, _seconds, _models)
