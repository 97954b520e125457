"""The same rows are the same training, however they are cut: per-step losses and gradient norms of equivalent runs.

    python -m benchmarks.equivalence [--steps 12] [--out benchmarks/results/equivalence.jsonl]

A LoRA on the embedded model in float32 learns from 8 documents of different lengths a step, in seven ways that should
make no difference. Each run leaves its trajectory: what each step was fed, the loss, the gradient norm. What differs is
the order in which numbers are added up.

Documents are made so that packing fills each row with two of them, a long one and the short one that fits, and so feeds
a step what the others are fed. Upstream's habit of the kind is `tests/invariant` of TRL.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_peft_recipes.bench.cell import SCHEMA_VERSION, circumstances
from hf_peft_recipes.bench.rows import write_documents
from hf_peft_recipes.bench.suite import Line, write_lines
from hf_peft_recipes.errors import RecipeError
from hf_peft_recipes.fresh_process import last_words, run_verb
from hf_peft_recipes.measure.facts import code_digest, commit_of
from hf_peft_recipes.trajectory import Point, read_trajectory

OUT = Path(__file__).parent / "results" / "equivalence.jsonl"
STEPS, DOCUMENTS = 12, 8
ROW = 128
"""Tokens of a packed row, and of its two documents together."""
_SHORTEST = 8
TOLERANCE = 1e-5
"""Relative. A float32 has 24 bits, 6e-8 of its value; a sum over the thousand terms of a step is off by some tens of
that, 2e-6, and each step hands on to the next what it is off by."""
OPTIONS: dict[str, Any] = {
    "dtype": "float32", "bf16": False, "seed": 42, "learning_rate": 1e-3, "lr_scheduler_type": "constant",
    "warmup_steps": 0, "train_sampling_strategy": "sequential", "max_length": ROW, "data.validation_size": 0,
    "evaluation.max_rows": 0, "eval_strategy": "no", "save_strategy": "no", "certify": "off", "report_to": "none",
}  # fmt: skip
PADDED, ONE = {"packing": False}, {"gradient_accumulation_steps": 1}


@dataclass(frozen=True)
class Way:
    """One way to train on the rows."""

    name: str
    overrides: Mapping[str, Any]
    processes: int = 1


WAYS: dict[str, Way] = {
    way.name: way
    for way in (
        Way("8 × 1", {**PADDED, **ONE, "per_device_train_batch_size": 8}),
        Way("1 × 8", {**PADDED, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}),
        Way("2 × 4", {**PADDED, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}),
        Way("2 processes × 4", {**PADDED, **ONE, "per_device_train_batch_size": 4}, processes=2),
        Way("checkpointing", {**PADDED, **ONE, "per_device_train_batch_size": 8, "activation_checkpointing": True}),
        Way("packed", {"packing": True, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}),
        Way("upstream's paths", {**PADDED, **ONE, "per_device_train_batch_size": 8, "speed": "off"}),
    )
}
"""Name to what is set; the first is what the others are held against."""
REFERENCE = next(iter(WAYS))


def write_rows(path: Path, steps: int) -> None:
    """Write the documents, 8 a step: four long ones, and those that fill their rows up.

    Args:
        path: of the JSON Lines file.
        steps: optimizer steps that they are for.
    """
    # No two long ones are alike: packing takes the longest first, and finds one place where each short one fits.
    longs = [ROW - _SHORTEST - number for number in range(steps * DOCUMENTS // 2)]
    parts = [longs[start : start + DOCUMENTS // 2] for start in range(0, len(longs), DOCUMENTS // 2)]
    write_documents(path, [length for part in parts for length in (*part, *(ROW - long for long in part))])


def options_of(way: Way, rows: Path, steps: int) -> dict[str, Any]:
    """Return the options of its run.

    Args:
        way: to train.
        rows: as `write_rows` makes them.
        steps: optimizer steps.
    """
    return {**OPTIONS, "dataset": str(rows), "max_steps": steps, **way.overrides}


def run(way: Way, rows: Path, steps: int, folder: Path) -> list[Point]:
    """Return the trajectory of a run in processes of its own.

    Args:
        way: to train.
        rows: as `write_rows` makes them.
        steps: optimizer steps.
        folder: that is written into.

    Raises:
        RecipeError: the run failed.
    """
    path = folder / "trajectory.jsonl"
    flags = [
        word
        for key, value in options_of(way, rows, steps).items()
        for word in (f"--{key}", json.dumps(value) if isinstance(value, bool) else str(value))
    ]
    several = ["--num_processes", str(way.processes)] if way.processes > 1 else []
    finished = run_verb(
        "train", "lora", "--output_dir", str(folder / "out"), "--trajectory", str(path), *flags, *several
    )
    if finished.returncode:
        raise RecipeError(f"{way.name}: {last_words(finished)}")
    return read_trajectory(path)


def differences(points: Sequence[Point], reference: Sequence[Point]) -> dict[str, float]:
    """Return by how much, at most, loss and gradient norm are off at any step, relative; infinite for other rows.

    Args:
        points: of one way.
        reference: of another.
    """
    pairs = list(zip(points, reference, strict=True))
    if any(one.batch != other.batch for one, other in pairs):
        return {"loss": float("inf"), "grad_norm": float("inf")}
    return {
        name: max(abs(getattr(one, name) / getattr(other, name) - 1) for one, other in pairs)
        for name in ("loss", "grad_norm")
    }


def measure(way: Way, rows: Path, steps: int, reference: Sequence[Point] | None) -> Line:
    """Return the line of a way.

    Args:
        way: to train.
        rows: as `write_rows` makes them.
        steps: optimizer steps.
        reference: what it is held against; None for itself.

    Raises:
        RecipeError: the run failed.
    """
    with tempfile.TemporaryDirectory(prefix="equivalence-") as folder:
        points = run(way, rows, steps, Path(folder))
    return {
        "schema_version": SCHEMA_VERSION,
        "name": way.name,
        "status": "done",
        "options": {**OPTIONS, **way.overrides},
        "processes": way.processes,
        "tolerance": TOLERANCE,
        "differences": differences(points, reference or points),
        "points": [asdict(point) for point in points],
        **circumstances(),
        "commit": commit_of(Path(__file__).parent),
        "code": code_digest(),
    }


def main(words: list[str] | None = None) -> int:
    """Run every way; return the exit code, 1 where one is not within the tolerance."""
    parser = argparse.ArgumentParser("benchmarks.equivalence", description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(words)
    lines: list[Line] = []
    with tempfile.TemporaryDirectory(prefix="equivalence-") as scratch:
        rows = Path(scratch) / "rows.jsonl"
        write_rows(rows, options.steps)
        for way in WAYS.values():
            try:
                line = measure(way, rows, options.steps, points_of(lines[0]) if lines else None)
            except RecipeError as error:
                print(f"error: {error}", file=sys.stderr)
                return error.exit_code
            lines.append(line)
            told = ", ".join(f"{name} off by {value:.1e}" for name, value in line["differences"].items())
            print(f"{way.name}: {told}", flush=True)
    write_lines(options.out, lines)
    return 0 if all(within(line) for line in lines) else 1


def points_of(line: Mapping[str, Any]) -> list[Point]:
    """Return the trajectory that a line holds."""
    return [Point(**point) for point in line["points"]]


def within(line: Mapping[str, Any]) -> bool:
    """Return whether a line's way is the same training as the first."""
    return all(value <= line["tolerance"] for value in line["differences"].values())


if __name__ == "__main__":
    # Sums in threads depend on how many there are.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
