"""What it costs that no run is lost: a checkpoint beside upstream's own, and a step with all guards beside one without.

    python -m benchmarks.checkpoints [--turns 30] [--steps 240] [--out benchmarks/results/checkpoints.jsonl]

- A checkpoint: in one process, the same trainer after its first step writes in turn as upstream does, as upstream does
  with what it wrote brought to disk afterwards (without that, a crash of the machine takes it), and as this package
  does: until it is sealed and in its place, and the part of that which training waits for. The disk is idle before
  each. Medians of the turns, and the ratio of the medians.
- A step: one trainer takes its steps in turn as the recipe makes it, and as one of upstream's class without a callback
  or a method of this package. Medians, and their ratio, of wall time and of the processor's time, which other work on
  the machine does not change.
"""

import argparse
import functools
import itertools
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_peft_recipes.api import resolve_recipe
from hf_peft_recipes.bench.cell import SCHEMA_VERSION, circumstances, overrides_of
from hf_peft_recipes.bench.rows import write_rows
from hf_peft_recipes.bench.shapes import EMBEDDED, make_model
from hf_peft_recipes.bench.suite import Line, read_lines, write_lines
from hf_peft_recipes.embedded import MODEL_DIR
from hf_peft_recipes.errors import RecipeError, UserError
from hf_peft_recipes.measure.facts import code_digest, commit_of
from hf_peft_recipes.report.progress import Progress

OUT = Path(__file__).parent / "results" / "checkpoints.jsonl"
PUBLIC = Path(os.environ.get("HF_PEFT_RECIPES_PUBLIC_DATA", Path(__file__).parents[2] / "shared"))
TARGETS = {"checkpoint": 1.2, "step": 1.01}
"""Ratios that are aimed at."""
_PACKAGE = "hf_peft_recipes"
_WARMUP = 5
"""Turns that are not counted: the first meet cold code, and steps are watched more closely until all tensors moved."""

_PAUSE = 3.0
"""Seconds before each turn for a GiB that the last one wrote: a disk may go on with it after it said that it was done,
and a virtual machine's memory that was freed a moment ago is faster than what its host must find anew."""


@dataclass(frozen=True)
class Cell:
    """What is measured."""

    kind: str
    """`checkpoint` or `step`."""
    recipe: str
    model: str
    """`embedded`, `stories260K`, or a shape of `bench.shapes`."""
    length: int
    """Tokens of a row."""
    turns: int

    @property
    def name(self) -> str:
        """In one word."""
        return f"{self.kind}-{self.recipe}-{self.model}"


def cells(turns: int, steps: int) -> list[Cell]:
    """Return the cells: adapters of small models, a whole model of 135 million parameters, and steps of two sizes."""
    return [
        Cell("checkpoint", "lora", EMBEDDED, 64, turns),
        Cell("checkpoint", "lora", "stories260K", 64, turns),
        Cell("checkpoint", "lora", "135m", 64, turns),
        Cell("checkpoint", "full", "135m", 64, turns),
        Cell("step", "lora", EMBEDDED, 256, steps),
        Cell("step", "lora", "s", 256, steps),
    ]


def build(cell: Cell, scratch: Path, name: str) -> Any:
    """Return the trainer of a cell's recipe, with rows for all its turns.

    Args:
        cell: that is measured.
        scratch: where models, rows and the run's folder are made.
        name: of the run's folder.

    Raises:
        UserError: the public model is not at hand.
    """
    if cell.model == "stories260K":
        model = PUBLIC / "models" / cell.model
        if not model.is_dir():
            raise UserError(f"no public model at {model} (HF_PEFT_RECIPES_PUBLIC_DATA names another place)")
    else:
        model = MODEL_DIR if cell.model == EMBEDDED else make_model(scratch / "models", cell.model)
    # A step is over where the next one fetches its rows.
    steps = 2 * (cell.turns + _WARMUP) + 1 if cell.kind == "step" else 1
    rows = scratch / f"{cell.name}.jsonl"
    write_rows(rows, 8 * (steps + 1), cell.length)
    options = {
        "model": str(model), "dataset": str(rows), "dtype": "float32", "bf16": False, "max_length": cell.length,
        "max_steps": steps, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2,
        "evaluation.max_rows": 0, "data.validation_size": 0, "eval_strategy": "no", "save_strategy": "no",
        "save_total_limit": 1, "report_to": "none", "certify": "off",
    }  # fmt: skip
    trainer = resolve_recipe(cell.recipe, overrides_of(options)).build_trainer(scratch / name)
    # Lines on the screen are no guard.
    trainer.remove_callback(Progress)
    return trainer


def upstreams(trainer: Any) -> Any:
    """Return the class that the trainer's is mixed into: upstream's own."""
    return next(kind for kind in type(trainer).__mro__ if not kind.__module__.startswith(_PACKAGE))


def sync_files(folder: Path) -> None:
    """Bring all files of a folder to disk."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())


def checkpoint_ways(trainer: Any) -> dict[str, Callable[[], None]]:
    """Return the ways to write a checkpoint, by name; the first is what the others are held against.

    Args:
        trainer: after its first step.
    """

    def own() -> None:
        # The class of all trainers: what upstream's trainers add to it goes into the model's card.
        from transformers import Trainer

        Trainer._save_checkpoint(trainer, trainer.model, None)

    def own_synced() -> None:
        own()
        sync_files(Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.global_step}")

    def sealed() -> None:
        trainer._save_checkpoint(trainer.model, None)
        trainer.settle()

    return {
        "upstream": own,
        "upstream, synced": own_synced,
        "sealed": sealed,
    }


def measure_checkpoints(cell: Cell, scratch: Path) -> dict[str, Any]:
    """Return the seconds of each turn by way, and the bytes of the last checkpoint."""
    trainer = build(cell, scratch, "run")
    trainer.train()
    ways = checkpoint_ways(trainer)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    folder, size = Path(trainer.args.output_dir), 0
    # What training waits for, of `sealed`: the rest is done while it goes on.
    waits = seconds["sealed, waited for"] = []
    for turn in range(cell.turns + 1):
        # Each way comes first as often as the others: what one leaves in the disk's cache slows the next.
        for name in rotated(list(ways), turn):
            write = ways[name]
            trainer.state.global_step += 1
            os.sync()
            time.sleep(size / 2**30 * _PAUSE)
            started = time.perf_counter()
            write()
            took = time.perf_counter() - started
            if name == "sealed" and turn:
                waits.append(trainer.checkpoints.seconds[-1])
            (made,) = folder.glob("checkpoint-*")
            size = sum(path.stat().st_size for path in made.rglob("*") if path.is_file())
            shutil.rmtree(made)
            if turn:
                seconds[name].append(took)
    return {"seconds": seconds, "bytes": size, **_ratios(seconds, "upstream")}


def rotated(names: list[str], turn: int) -> list[str]:
    """Return the names from another first one on in each turn."""
    at = turn % len(names)
    return names[at:] + names[:at]


class Turns:
    """Lets a trainer take its steps with all guards and without any in turn, and takes the time of each.

    One trainer and one model: where the memory of another one lies makes 1 to 2 % here, more than what is looked for.
    """

    def __init__(self, trainer: Any) -> None:
        kind, handler = type(trainer), trainer.callback_handler
        patched = {name: value for name, value in vars(trainer).items() if callable(getattr(kind, name, None))}
        theirs = [one for one in handler.callbacks if not type(one).__module__.startswith(_PACKAGE)]
        self._trainer = trainer
        self._sides: dict[str, tuple[Any, dict[str, Any], list[Any]]] = {
            "unguarded": (upstreams(trainer), {}, theirs),
            "guarded": (kind, patched, list(handler.callbacks)),
        }
        # The recipe's own side comes first, and last: training begins and ends with all that belongs to it.
        self._order = itertools.cycle(("guarded", "unguarded"))
        self._now = "guarded"
        self._started: tuple[float, float] | None = None
        self.wall: dict[str, list[float]] = {name: [] for name in self._sides}
        self.processor: dict[str, list[float]] = {name: [] for name in self._sides}
        trainer.get_batch_samples = self._fetch

    def _fetch(self, *arguments: Any) -> Any:
        """Return the next step's rows, as its side fetches them: here one step ends, and another begins."""
        if self._started:
            wall, processor = self._started
            self.wall[self._now].append(time.perf_counter() - wall)
            self.processor[self._now].append(time.process_time() - processor)
        self._now = next(self._order)
        self.switch(self._now)
        kind, patched, _ = self._sides[self._now]
        fetch = patched.get("get_batch_samples") or functools.partial(kind.get_batch_samples, self._trainer)
        self._started = time.perf_counter(), time.process_time()
        return fetch(*arguments)

    def switch(self, side: str) -> None:
        """Make the trainer what upstream would have, its class, its methods, its callbacks, or the package's again."""
        kind, patched, callbacks = self._sides[side]
        self._trainer.__class__ = kind
        for name in self._sides["guarded"][1]:
            vars(self._trainer).pop(name, None)
        vars(self._trainer).update(patched, get_batch_samples=self._fetch)
        self._trainer.callback_handler.callbacks[:] = callbacks


def measure_steps(cell: Cell, scratch: Path) -> dict[str, Any]:
    """Return the seconds of each step, with the guards and without, in wall and in processor's time."""
    trainer = build(cell, scratch, "run")
    turns = Turns(trainer)
    trainer.train()
    kept = {
        kind: {name: values[_WARMUP:] for name, values in found.items()}
        for kind, found in (("wall", turns.wall), ("processor", turns.processor))
    }
    return {
        "seconds": kept["wall"], "processor_seconds": kept["processor"], **_ratios(kept["wall"], "unguarded"),
        "processor": _ratios(kept["processor"], "unguarded"),
    }  # fmt: skip


def _ratios(seconds: dict[str, list[float]], first: str) -> dict[str, Any]:
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {"medians": medians, "ratios": {name: value / medians[first] for name, value in medians.items()}}


MEASURES: dict[str, Callable[[Cell, Path], dict[str, Any]]] = {
    "checkpoint": measure_checkpoints,
    "step": measure_steps,
}


def measure(cell: Cell, scratch: Path) -> Line:
    """Return the line of a cell.

    Args:
        cell: to measure.
        scratch: on the disk that checkpoints are written to.

    Raises:
        RecipeError: it could not be measured.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        found = MEASURES[cell.kind](cell, Path(folder))
    return {
        "schema_version": SCHEMA_VERSION,
        "name": cell.name,
        "status": "done",
        "cell": asdict(cell),
        "target": TARGETS[cell.kind],
        **found,
        "load_average": os.getloadavg()[0],
        **circumstances(),
        "commit": commit_of(Path(__file__).parent),
        "code": code_digest(),
    }


def measured(wanted: list[Cell], scratch: Path) -> Iterator[Line]:
    """Yield the lines of the cells, each told as it comes."""
    for cell in wanted:
        line = measure(cell, scratch)
        told = ", ".join(f"{name} {ratio:.3f}" for name, ratio in line["ratios"].items())
        print(f"{cell.name}: {told} (aimed at: {line['target']})", flush=True)
        yield line


def main(words: list[str] | None = None) -> int:
    """Measure every cell and write the result file; return the exit code."""
    parser = argparse.ArgumentParser("benchmarks.checkpoints", description=__doc__.split("\n")[0])
    parser.add_argument("--turns", type=int, default=30, help="checkpoints of each way")
    parser.add_argument("--steps", type=int, default=240, help="steps of each kind")
    parser.add_argument("--only", default="", help="cells whose name begins so; the file keeps its other lines")
    parser.add_argument("--scratch", type=Path, default=None, help="a folder on the disk to measure")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(words)
    every = cells(options.turns, options.steps)
    wanted = [cell for cell in every if cell.name.startswith(options.only)]
    names = [cell.name for cell in every]
    kept = [line for line in read_lines(options.out) if line["name"] not in {cell.name for cell in wanted}]
    try:
        with tempfile.TemporaryDirectory(prefix="checkpoints-", dir=options.scratch) as scratch:
            lines = [*kept, *measured(wanted, Path(scratch))]
            write_lines(options.out, sorted(lines, key=lambda line: names.index(line["name"])))
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
