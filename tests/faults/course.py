"""The short run that faults are put into, what it leaves when nothing goes wrong, and what is held against that."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

STEPS, EVERY, KEPT = 6, 2, 2
WEIGHTS = "adapter_model.safetensors"
ROWS = 24
SETTINGS = {
    "max_length": 64, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "max_steps": STEPS,
    "save_strategy": "steps", "save_steps": EVERY, "save_total_limit": KEPT, "eval_strategy": "no", "certify": "off",
    "logging_steps": 1, "learning_rate": 5e-3, "r": 2, "target_modules": ["q_proj"],
    # Numbers are drawn at each step: what does not come back with a checkpoint is seen in the weights.
    "lora_dropout": 0.1, "data.validation_size": 0.0,
}  # fmt: skip
"""Overrides of `lora`: an adapter of four pairs of matrices, no rows held out."""


def train(folder: Path, *, resume: bool = False, callbacks: list[Any] | None = None, **more: Any) -> dict[str, Any]:
    """Return the record of the run, in a folder.

    Args:
        folder: of the run.
        resume: go on with what the folder holds.
        callbacks: of the trainer.
        more: overrides beside SETTINGS.
    """
    from hf_peft_recipes import get_recipe
    from hf_peft_recipes.checkpoints.sealed import _Sealing
    from hf_peft_recipes.embedded import DATA_DIR

    lines = (DATA_DIR / "train.jsonl").read_text("utf-8").splitlines()[:ROWS]
    rows = [json.loads(line) for line in lines]
    recipe = get_recipe("lora", dataset=rows, callbacks=callbacks or [], **{**SETTINGS, **more})
    # Not while training goes on: a fork has none of the threads, and the n-th change of the disk is to be the same one.
    with patch.object(_Sealing, "begin", _Sealing.run):
        return recipe.train(folder, resume=resume, progress=False).record


def command(folder: Path, callbacks: list[Any] | None = None, **options: Any) -> Callable[[], dict[str, Any]]:
    """Return work for a fork: the run, ending as the command line ends, with the exit code of what went wrong."""

    def work() -> dict[str, Any]:
        from hf_peft_recipes.errors import RecipeError

        try:
            return train(folder, callbacks=callbacks, **options)
        except RecipeError as error:
            print(f"error: {error}", flush=True)
            raise SystemExit(error.exit_code) from None

    return work


def quicken() -> None:
    """Leave out of runs what takes long and is not looked at here: the picture of the losses, the model's statement."""
    from hf_peft_recipes import certificate, runner

    runner.plot_losses = lambda *_: None
    certificate.state = lambda *_, **__: {}


def digests(folder: Path) -> dict[str, str]:
    """Return path below a folder to the sha256 of each file; folders end in a slash and have none."""
    return {
        f"{path.relative_to(folder)}{'/' if path.is_dir() else ''}": ""
        if path.is_dir()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
    }


def state_of(folder: Path) -> str:
    """Return all of a folder's state that makes a difference to a run that goes on from it, as a text.

    Left out is what differs by chance alone: the drawn part of names, dates, seconds.
    """
    found = {}
    for name, digest in digests(folder).items() if folder.exists() else ():
        path = folder / name
        if path.name in _DATED:
            digest = _DATED[path.name](path) or digest
        found[re.sub(r"\.\w{8}\.partial$|\.tmp\w{6}$", ".drawn", name)] = digest
    return json.dumps(found, sort_keys=True)


def _undated(path: Path) -> str:
    """Return what a manifest or a record says that is not of its date; empty where it is cut off."""
    try:
        told = json.loads(path.read_text("utf-8"))
    except ValueError:
        return ""
    kept = {"schema_version", "step", "planned_steps", "resumable", "batch", "files", "status", "exit_code"}
    return json.dumps({key: value for key, value in told.items() if key in kept} | {"data": told.get("data")})


_DATED: dict[str, Callable[[Path], str]] = {
    "manifest.json": _undated, "result.json": _undated, "run.lock": lambda _: "",
}  # fmt: skip


def restore(folder: Path, kept: Path | None) -> None:
    """Make a folder what was kept of it; None for an empty place."""
    shutil.rmtree(folder, ignore_errors=True)
    if kept is not None:
        shutil.copytree(kept, folder, symlinks=True)


def without_date(checkpoint: Mapping[str, str]) -> dict[str, str]:
    """Return a checkpoint's digests without its manifest's, which tells when it was written."""
    return {name: digest for name, digest in checkpoint.items() if name != "manifest.json"}


@dataclass
class Undisturbed:
    """What the run leaves where nothing goes wrong."""

    weights: str = ""
    """Digest of what was trained."""
    checkpoints: dict[int, dict[str, str]] = field(default_factory=dict)
    """Step to the digests of its files."""
    names: set[str] = field(default_factory=set)
    """What lies in the run's folder at the end."""


def undisturbed(folder: Path) -> Undisturbed:
    """Return what the run leaves, having let it run in this process.

    Args:
        folder: of the run, which stays.
    """
    from transformers import TrainerCallback

    found = Undisturbed()

    class Collect(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            step = state.global_step
            found.checkpoints[step] = without_date(digests(folder / f"checkpoint-{step}"))

    train(folder, callbacks=[Collect()])
    found.weights = digests(folder)[WEIGHTS]
    found.names = {path.name for path in folder.iterdir()}
    return found


def state_problems(folder: Path, allowed: set[int | None], wanted: Undisturbed) -> list[str]:
    """Return what is wrong with a folder that a fault has been at: a third state, neither the old one nor the new.

    Args:
        folder: of the run.
        allowed: steps of which one must be that of the newest good checkpoint; None among them allows none.
        wanted: what the run leaves where nothing goes wrong.
    """
    from hf_peft_recipes.checkpoints import list_checkpoints, newest_good

    newest, _ = newest_good(folder)
    step = newest.step if newest else None
    problems = [] if step in allowed else [f"the newest good checkpoint is that of step {step}, not one of {allowed}"]
    for verdict in list_checkpoints(folder):
        if not verdict.good:
            continue
        there, meant = without_date(digests(verdict.path)), wanted.checkpoints.get(verdict.step, {})
        if differing := sorted(name for name in there | meant if there.get(name) != meant.get(name)):
            problems.append(f"{verdict.path.name} is called good and has not been written so: {', '.join(differing)}")
    return problems


def end_problems(folder: Path, wanted: Undisturbed) -> list[str]:
    """Return what is wrong with a folder whose run has come to its end: other weights, or something left over."""
    from hf_peft_recipes.checkpoints import list_checkpoints

    there = digests(folder)
    problems = [] if there.get(WEIGHTS) == wanted.weights else ["other weights than those of the undisturbed run"]
    left = {path.name for path in folder.iterdir()} - wanted.names
    problems += [f"left over: {name}" for name in sorted(left) if not name.startswith("checkpoint-")]
    problems += [f"{one.path.name}: {one.problems[0]}" for one in list_checkpoints(folder) if not one.good]
    return problems
