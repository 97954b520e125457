"""A task in a process of its own: `python -m benchmarks.gpu.worker TASK ASKED.json ANSWER.json`, see `process`."""

from __future__ import annotations

import json
import sys
import tempfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.gpu.contenders import BUILDERS, IMPORTED_FIRST, Built, Unavailable
from benchmarks.gpu.process import Work


def train(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of a training: what a run's `result.json` has of it, and what `Watch` saw.

    Args:
        given: the fields of a `Work`.
    """
    work = Work(**given)
    with tempfile.TemporaryDirectory() as folder:
        try:
            built = BUILDERS[work.contender](work, Path(folder))
        except Unavailable as reason:
            return {"unavailable": str(reason)}
        return _train(work, built)


def _train(work: Work, built: Built) -> dict[str, Any]:
    from benchmarks.gpu.watch import Watch
    from hf_peft_recipes.measure.clock import StepClock
    from hf_peft_recipes.models import count_parameters

    trainer = built.trainer
    if work.seeded:
        seed_adapter(trainer.model)
    clock = next((one for one in trainer.callback_handler.callbacks if isinstance(one, StepClock)), None)
    if clock is None:
        clock = StepClock()
        trainer.add_callback(clock)
        clock.watch(trainer)
    watch = Watch(trainer.args.max_steps, work.profiled)
    watch.watch(trainer)
    parameters = count_parameters(trainer.model)
    trainer.train()
    seen = watch.result(work.warmup)
    return {
        "measured": {
            "peak_memory_bytes": clock.phases.peak_memory_bytes("train"), **clock.result(),
            "phases": clock.phases.shown(), **seen,
        },
        "parameters": asdict(parameters), "speed": list(built.speed), "recompute": built.recompute,
        "loss_curve": [{"step": step, "loss": loss} for step, loss in enumerate(seen["step_losses"], 1)],
    }  # fmt: skip


def seed_adapter(model: Any) -> None:
    """Draw LoRA's weights by their names, so that every contender starts from the same, with a B that is not zero."""
    import torch

    for name, tensor in model.named_parameters():
        if not tensor.requires_grad or "lora_" not in name:
            continue
        # Wrappers differ in what stands before the layers and after lora_A.
        plain = name[name.index("layers.") :].split(".weight")[0].replace(".default", "")
        draw = torch.Generator().manual_seed(zlib.crc32(plain.encode()))
        tensor.data.copy_(torch.empty(tensor.shape).normal_(0, 0.02, generator=draw))


def check(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the findings of one of `checks.CHECKS`.

    Args:
        given: `check`, its name, and its arguments.
    """
    from benchmarks.gpu.checks import CHECKS

    arguments = dict(given)
    return {"findings": CHECKS[arguments.pop("check")](**arguments)}


TASKS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {"train": train, "check": check}
"""Task to its function, from JSON to JSON."""


def main() -> None:
    """Do the task that the command line names."""
    from hf_peft_recipes.upstream_noise import quiet

    task, asked, answer = sys.argv[1:]
    given = json.loads(Path(asked).read_text(encoding="utf-8"))
    if first := IMPORTED_FIRST.get(given.get("contender")):
        with suppress(ImportError):
            import_module(first)
    with quiet():
        found = TASKS[task](given)
    Path(answer).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
