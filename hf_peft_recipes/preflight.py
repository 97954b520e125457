"""What can be refused before anything is loaded or written: folder, launch, base, data. Imports no torch."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hf_peft_recipes import engines, launching, models, quantizers
from hf_peft_recipes.budget import Budget
from hf_peft_recipes.checkpoints.resuming import Resumption, find_resumption
from hf_peft_recipes.data.loading import read
from hf_peft_recipes.data.reading import Examples
from hf_peft_recipes.data.shapes import SHAPES, check_shape
from hf_peft_recipes.errors import PreemptedError, UserError, did_you_mean
from hf_peft_recipes.lock import sole_writer
from hf_peft_recipes.results import RECIPE_FILE, RESULT_FILE, earlier_record
from hf_peft_recipes.scorers.rewards import read_rewards
from hf_peft_recipes.spec import ResolvedRecipe
from hf_peft_recipes.spec.objectives import OBJECTIVES
from hf_peft_recipes.spec.sameness import require_same

_RUN_FILES = (RECIPE_FILE, RESULT_FILE, "adapter_config.json", "config.json", "trainer_state.json")
_RUN_PATTERNS = (
    *_RUN_FILES, "adapter_model.safetensors", "certificate.json", "base_fingerprint.json", "model*.safetensors",
    "model.safetensors.index.json", "generation_config.json", "loss.png", "tokenizer*", "special_tokens_map.json",
    "rounds.png", "chat_template.jinja", "added_tokens.json", "vocab.json", "merges.txt", "training_args.bin",
    "checkpoint-*", ".checkpoint-*",
)  # fmt: skip

_UNTOUCHED_SECTIONS = ("summary", "chosen_for_device", "rules", "evaluation", "certify", "speed", "recompute")
_UNTOUCHED_TRAINING = (
    "save_", "logging_", "eval_", "report_to", "run_name", "dataloader_", "use_cpu", "per_device_",
    "gradient_accumulation_steps", "torch_empty_cache_steps", "disable_tqdm", "ddp_",
)  # fmt: skip
"""Beginnings of fields that say how, and not what, is learned."""

_PROMPT_ONLY = "prompt_only"

OPTIMIZER_PACKAGES = {"galore": "galore_torch", "apollo": "apollo_torch"}
"""First word of an optimizer's name to its module; the extra of that name installs it."""

ON_NONFINITE = {
    "stop": "the run ends, its last good checkpoint stays",
    "rollback": "it goes back to its last good checkpoint, and leaves that step out",
}
ON_OOM = {
    "halve": "half as many rows at a time, as many a step",
    "stop": "the run ends",
}

_TO_LEARN_ANSWERS = {
    "preference": " To train on what was chosen: --data.columns.completion chosen",
    "feedback": " To train on all completions: --data.columns.completion completion",
}
"""Formats of which `sft` could take a part, and how."""


@dataclass
class RunRequest:
    """What a run is asked for beside its recipe."""

    output_dir: Path | None = None
    """None: a new folder `runs/NAME-YYYYMMDD-HHMMSS`."""
    overwrite: bool = False
    resume: bool = False
    dry_run: bool = False
    longest: bool = False
    """Take the longest rows alone, as many as two optimizer steps and a batch of scoring need."""
    budget: Budget | None = None
    """What ends training, in place of the recipe's steps."""
    command: str = ""
    progress: bool = True
    model: Any = None
    """Objects that the caller has, in place of what the recipe names."""
    tokenizer: Any = None
    dataset: Any = None
    callbacks: list[Any] = field(default_factory=list)
    rewards: dict[str, Any] = field(default_factory=dict)
    """The caller's reward functions, by the path under which the recipe names them."""
    sources: dict[str, Any] = field(default_factory=dict)
    """The caller's functions that give feedback, by the path under which the recipe names them."""
    trajectory: Path | None = None
    """A file that gets a line at each optimizer step: what it was fed, and what came of it."""
    on_nonfinite: str = "stop"
    """What becomes of a run where a loss or a gradient is not finite: see `ON_NONFINITE`."""
    max_rollbacks: int = 3
    """How often it goes back before it stops all the same."""
    on_oom: str = "halve"
    """What becomes of a run where a step does not fit into memory: see `ON_OOM`."""
    advise: Callable[[], str] = str
    """Says what would fit into memory, where nothing does."""
    launch: tuple[str, ...] = ()
    """Flags by which the training of each round is started in several processes."""


@dataclass(frozen=True)
class Examined:
    """What the checks have read, for the run to go on with."""

    output_dir: Path
    examples: Examples
    resumption: Resumption | None = None
    """Where the run goes on from, if it does."""


def examine(recipe: ResolvedRecipe, request: RunRequest) -> Examined:
    """Return the run's folder and data, after every check that needs no model.

    Raises:
        UserError: an output folder in use, a base without weights, no reward where one is wanted, data that cannot be
            used.
        LaunchError: the launcher's variables contradict each other.
    """
    launching.check_environment(os.environ)
    engines.check_recipe(recipe, engines.read_environment(os.environ))
    check_recovery(recipe, request)
    check_optimizer(recipe)
    quantizers.check_installed(recipe.section("quantization"))
    output_dir = run_folder(recipe, request)
    if not request.dry_run and launching.rank_from_environment() == 0:
        _check_folder(output_dir, request, recipe.is_in_rounds)
    resumption = None
    if request.resume and not recipe.is_in_rounds:
        resumption = _resumption(output_dir, recipe)
    if request.model is None:
        models.check_base(recipe.section("model"))
    rewards = read_rewards(recipe, request.rewards)
    examples = examine_data(recipe, request)
    wanting = next((reward.name for reward in rewards if reward.scorer.needs_reference), None)
    if wanting and _PROMPT_ONLY in examples.format.split(" + "):
        raise UserError(
            f"data set {examples.name!r} holds prompts alone, and the reward {wanting!r} needs a reference: "
            "name its column, --data.columns.prompt … --data.columns.completion …"
        )
    if request.resume:
        _require_same_data(output_dir, examples)
    return Examined(output_dir, examples, resumption)


@contextmanager
def one_run(request: RunRequest) -> Iterator[None]:
    """Hold the run's folder against other runs for the block; tell who is asked to end meanwhile how it goes on.

    Args:
        request: with a folder.

    Raises:
        UserError: another process holds it.
        PreemptedError: as the block raises it.
    """
    folder, began = request.output_dir, time.time()
    if request.dry_run or folder is None or launching.rank_from_environment():
        yield
        return
    with sole_writer(folder, "run"):
        try:
            yield
        except PreemptedError as error:
            path = folder / RESULT_FILE
            if path.is_file() and (request.resume or path.stat().st_mtime >= began):
                error.folder = None if earlier_record(folder).get("status") == "done" else folder
            raise


def run_folder(recipe: ResolvedRecipe, request: RunRequest) -> Path:
    """Return the run's folder: the one that was asked for, or a new one below `runs/`."""
    return request.output_dir or Path("runs") / f"{recipe.name}-{datetime.now():%Y%m%d-%H%M%S}"


def check_recovery(recipe: ResolvedRecipe, request: RunRequest) -> None:
    """Raise a UserError where what is to become of a run that fails is not known, or cannot be done."""
    for name, known in (("on_nonfinite", ON_NONFINITE), ("on_oom", ON_OOM)):
        asked = getattr(request, name)
        if asked not in known:
            listed = "; ".join(f"{word}: {meaning}" for word, meaning in known.items())
            raise UserError(f"--{name} {asked}{did_you_mean(asked, known)} ({listed})")
    if request.max_rollbacks < 0:
        raise UserError(f"--max_rollbacks {request.max_rollbacks}: 0 or more is wanted")
    if request.on_nonfinite == "rollback":
        if recipe.value("training.save_only_model"):
            raise UserError("--on_nonfinite rollback needs whole checkpoints: leave training.save_only_model out")
        if recipe.value("training.fp16"):
            raise UserError(
                "--on_nonfinite rollback: under training.fp16 the gradient scaler leaves out such steps by itself"
            )


def check_optimizer(recipe: ResolvedRecipe) -> None:
    """Raise a UserError where the optimizer comes from a package that is not installed."""
    optimizer = str(recipe.value("training.optim"))
    extra, _, rest = optimizer.partition("_")
    if rest and extra in OPTIMIZER_PACKAGES and find_spec(OPTIMIZER_PACKAGES[extra]) is None:
        raise UserError(
            f"training.optim {optimizer} comes from a package that is not installed: "
            f"pip install 'hf-peft-recipes[{extra}]'"
        )


def examine_data(recipe: ResolvedRecipe, request: RunRequest) -> Examples:
    """Return the run's data, after every check that needs neither a base nor a folder.

    Raises:
        UserError: data that cannot be used.
    """
    evaluation, data = recipe.section("evaluation") or {}, recipe.section("data") or {}
    bounded = request.dry_run or request.budget is not None
    if data["streaming"] and recipe.value("training.max_steps") in (None, -1) and not bounded:
        raise UserError("data.streaming needs --max_steps: the end of a stream is not known beforehand")
    shape = recipe.shape
    examples = read(data, evaluation, recipe.value("training.seed") or 0, request.dataset, shape)
    check_shape(shape, data["overlong"], data["loss_on"])
    for found in examples.format.split(" + "):
        if found not in SHAPES[shape].formats:
            raise UserError(f"data set {examples.name!r} holds {found} data, {_advice(recipe, found)}")
    return examples


def _advice(recipe: ResolvedRecipe, found: str) -> str:
    """Return what can be done with data of a format that is another objective's."""
    other = next(name for name, facts in OBJECTIVES.items() if found in SHAPES[facts.shape].formats)
    method = [word for word in recipe.name.split("+") if word not in OBJECTIVES]
    hint = _TO_LEARN_ANSWERS.get(found, "") if recipe.objective == "sft" else ""
    return f"which {recipe.objective} does not learn from; did you mean {'+'.join([*method, other])}?{hint}"


def clear_run(folder: Path) -> None:
    """Remove what an earlier run wrote into the folder, and nothing else."""
    for pattern in _RUN_PATTERNS:
        for path in folder.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _resumption(folder: Path, recipe: ResolvedRecipe) -> Resumption:
    """Return where the run in `folder` goes on, as the one that it began as."""
    file = folder / RECIPE_FILE
    if file.is_file():
        require_same(file, recipe, _may_change)
    # Where the disk was full from the beginning, the record is all that there is.
    return find_resumption(folder, file.is_file() or bool(earlier_record(folder)))


def _may_change(path: tuple[str, ...]) -> bool:
    """Return whether a value makes no difference to what was trained before: rows a step are kept all the same."""
    section, *keys = path
    if section in _UNTOUCHED_SECTIONS:
        return True
    return section == "training" and keys[0].startswith(_UNTOUCHED_TRAINING)


def _require_same_data(folder: Path, examples: Examples) -> None:
    """Raise a UserError where the rows are no longer those that the run in `folder` began with."""
    before = earlier_record(folder).get("data", {}).get("fingerprint")
    if before is not None and before != examples.fingerprint:
        raise UserError(
            f"--resume: data set {examples.name!r} has changed since the run in {str(folder)!r} began; "
            "which of its rows were learned from is not known any more"
        )


def _check_folder(folder: Path, request: RunRequest, in_rounds: bool) -> None:
    if request.overwrite and request.resume:
        raise UserError("--overwrite and --resume contradict each other")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output folder {str(folder)!r} is a file")
    if request.resume:
        if in_rounds and not (folder / RECIPE_FILE).is_file():
            raise UserError(f"--resume: {str(folder)!r} holds no run")
        if earlier_record(folder).get("status") == "done":
            raise UserError(f"--resume: the run in {str(folder)!r} is done")
        return
    in_use = [name for name in _RUN_FILES if (folder / name).exists()]
    in_use += [path.name for path in folder.glob("checkpoint-*")] if folder.is_dir() else []
    if in_use and not request.overwrite:
        raise UserError(
            f"output folder {str(folder)!r} already holds a run ({in_use[0]}); "
            f"use another --output_dir, --overwrite to replace it, or --resume to go on with it"
        )
    parent = next(parent for parent in [folder, *folder.absolute().parents] if parent.exists())
    if not os.access(parent, os.W_OK):
        raise UserError(f"output folder {str(folder)!r} cannot be written: no permission in {str(parent)!r}")
