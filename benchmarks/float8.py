"""What rounding the base to 8-bit floats changes: `lora_fp8` beside `lora`, from the same seeds, on the same rows.

    python -m benchmarks.float8 [--data ../shared] [--seeds 3] [--out benchmarks/results/float8.jsonl]

Two tasks: a really pretrained Llama of 260 thousand parameters on the questions of GSM8K, by its loss, and the embedded
demo, by its accuracy, stopped before every answer is right. A line is a run. All are trained in this process, one after
the other, so that none tells of its memory: `benchmarks.memory --recipes lora_fp8` does. What stands in the file and is
of the same code is not run again.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hf_peft_recipes.api import get_recipe
from hf_peft_recipes.bench.cell import circumstances
from hf_peft_recipes.bench.suite import Line, find_line, is_result, read_lines, require_quiet, with_line, write_lines
from hf_peft_recipes.errors import RecipeError
from hf_peft_recipes.measure.facts import code_digest, commit_of

SCHEMA_VERSION = 1
OUT = Path(__file__).parent / "results" / "float8.jsonl"
METHODS = ("lora", "lora_fp8")
EMBEDDED, MODEL, DATA = "embedded", "stories260K", "gsm8k"


@dataclass(frozen=True)
class Run:
    """One training of the benchmark."""

    method: str
    seed: int
    model: str
    dataset: str
    steps: int
    options: dict[str, Any] = field(default_factory=dict)
    """Further values of the recipe."""

    @property
    def name(self) -> str:
        """`lora_fp8-stories260K-gsm8k-seed1`."""
        return f"{self.method}-{self.model}-{self.dataset}-seed{self.seed}"


def runs(seeds: int) -> Iterator[Run]:
    """Yield all runs, those of a seed one after the other.

    Args:
        seeds: how many, from 1.
    """
    # A small model needs a larger rate than the recipe is made for; two short rows a step are enough to compare.
    real = {
        "learning_rate": 2e-3, "gradient_accumulation_steps": 2, "max_length": 512, "evaluation.task": "text",
        "evaluation.max_rows": 100,
    }  # fmt: skip
    for seed in range(1, seeds + 1):
        for method in METHODS:
            yield Run(method, seed, MODEL, DATA, 80, real)
    for seed in range(1, seeds + 1):
        for method in METHODS:
            yield Run(method, seed, EMBEDDED, EMBEDDED, 12)


def measure(run: Run, data: Path, scratch: Path) -> Line:
    """Return the line of a run: what it is, its losses step by step, its metrics before and after, what it took.

    Args:
        run: to make.
        data: where data/ and models/ are.
        scratch: below which it is written.

    Raises:
        RecipeError: it failed.
    """
    named = {"model": str(data / "models" / run.model), "dataset": str(data / "data" / run.dataset)}
    given: dict[str, Any] = {} if run.model == EMBEDDED else named
    recipe = get_recipe(
        run.method, **given, max_steps=run.steps, seed=run.seed, logging_steps=1, eval_strategy="no",
        save_strategy="no", certify="off", report_to="none", **run.options,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        record = recipe.train(Path(folder) / "out", progress=False).record
    return {
        "schema_version": SCHEMA_VERSION,
        "name": run.name,
        "cell": asdict(run),
        "status": record["status"],
        "metrics": {key: value for key, value in record["metrics"].items() if key != "examples"},
        "train_seconds": record["measured"]["train_seconds"],
        "losses": [[point["step"], point["loss"]] for point in record["loss_curve"] if "loss" in point],
        **circumstances(),
    }


def benchmark(words: list[str] | None = None) -> list[Line]:
    """Return the lines of all runs, making those that the file has no result of.

    Raises:
        RecipeError: a busy GPU, a file that is none of ours, or a run that failed.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared"), help="where data/ and models/ are")
    parser.add_argument("--seeds", type=int, default=3, help="so many, from 1")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--keep", action="store_true", help="take results of other code too")
    parser.add_argument("--busy", action="store_true", help="measure though others use the GPU")
    options = parser.parse_args(words)
    if not options.busy:
        require_quiet("; wait until it is free, or measure all the same with --busy")
    lines, commit, found = read_lines(options.out), commit_of(Path(__file__).parent), []
    with tempfile.TemporaryDirectory() as folder:
        for run in runs(options.seeds):
            line = find_line(lines, run)
            if line is None or not is_result(line, options.keep):
                line = measure(run, options.data, Path(folder)) | {"commit": commit, "code": code_digest()}
                lines = with_line(lines, line)
                write_lines(options.out, lines)
            ends = [line["metrics"][side]["loss"] for side in ("before", "after")]
            print(f"{line['name']}: loss {ends[0]:.4f} to {ends[1]:.4f}", file=sys.stderr, flush=True)
            found.append(line)
    return found


def main() -> None:
    """Measure what is missing."""
    try:
        benchmark()
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
