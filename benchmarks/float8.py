"""What rounding the base to 8-bit floats changes: `lora_fp8` beside `lora`, from the same seeds, on the same rows.

    python -m benchmarks.float8 [--data ../shared] [--seeds 3] [--out benchmarks/results/float8.jsonl]

Two tasks: a really pretrained Llama of 260 thousand parameters on the questions of GSM8K, by its loss, and the embedded
demo, by its accuracy, stopped before every answer is right. A run is one of `benchmarks.quality`, and so is its line.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.quality import EMBEDDED, EMBEDDED_STEPS, Places, Run, measure_all
from hf_peft_recipes.bench.suite import Line, require_quiet
from hf_peft_recipes.errors import RecipeError

OUT = Path(__file__).parent / "results" / "float8.jsonl"
METHODS = ("lora", "lora_fp8")
MODEL, DATA = "stories260K", "gsm8k"


@dataclass(frozen=True)
class Task:
    """What both methods are trained on."""

    model: str
    dataset: str
    steps: int
    flags: tuple[str, ...] = ()


TASKS = (
    # A small model needs a larger rate than the recipe is made for; two rows a step are enough to compare.
    Task(
        MODEL, DATA, 150,
        (
            "--learning_rate", "2e-3", "--gradient_accumulation_steps", "2", "--max_length", "512",
            "--evaluation.task", "text", "--evaluation.max_rows", "200",
        ),
    ),
    Task(EMBEDDED, EMBEDDED, EMBEDDED_STEPS, ("--logging_steps", "1")),
)  # fmt: skip


def runs(task: Task, seeds: int) -> Iterator[Run]:
    """Yield the runs of a task, those of a seed one after the other.

    Args:
        task: one of `TASKS`.
        seeds: how many, from 1.
    """
    for seed in range(1, seeds + 1):
        for method in METHODS:
            yield Run(method, seed, task.model, task.dataset, task.steps, None, task.flags)


def benchmark(words: list[str] | None = None) -> list[Line]:
    """Return the lines of all runs, making those that the file has no result of.

    Raises:
        UserError: a busy GPU, or a file that is none of ours.
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
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for task in TASKS:
            places = Places(None, None, None)
            if task.model != EMBEDDED:
                places = Places(
                    str(options.data / "models" / task.model), str(options.data / "data" / task.dataset), None
                )
            found += measure_all([*runs(task, options.seeds)], places, options.out, Path(folder), options.keep)
    return found


def main() -> None:
    """Measure what is missing; end with 1 where a run failed."""
    try:
        lines = benchmark()
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    sys.exit(any(line["status"] == "failed" for line in lines))


if __name__ == "__main__":
    main()
