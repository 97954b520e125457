"""What a plan itself costs: in closed form for 70 billion parameters, traced for 8 billion; from a config alone.

    python -m benchmarks.planning [--repeats 5] [--out benchmarks/results/planning.jsonl]

Each is `hf-peft-recipes plan` in a fresh process, and its seconds are all of that process's, Python's start included.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_peft_recipes.bench.cell import SCHEMA_VERSION, circumstances
from hf_peft_recipes.bench.shapes import find_shape
from hf_peft_recipes.bench.suite import write_lines
from hf_peft_recipes.errors import RecipeError
from hf_peft_recipes.fresh_process import last_words, run_verb
from hf_peft_recipes.measure.facts import commit_of

OUT = Path(__file__).parent / "results" / "planning.jsonl"


@dataclass(frozen=True)
class Question:
    """One plan that is asked for."""

    recipe: str
    shape: str
    device: str
    trace: bool = False


QUESTIONS = (
    # A device on which nothing fits is the most work: changes are tried until some does.
    Question("lora", "70b", "24GiB"),
    Question("qlora", "70b", "H100"),
    Question("full", "8b", "H100"),
    Question("lora", "8b", "H100", trace=True),
    Question("qlora", "8b", "24GiB", trace=True),
)


def measure(question: Question, repeats: int) -> dict[str, Any]:
    """Return the line of a question: seconds and CPU seconds of each repeat, with where they were measured.

    Args:
        question: to ask.
        repeats: how often.

    Raises:
        RecipeError: the plan ended with an error.
    """
    with tempfile.TemporaryDirectory() as folder:
        values = {**find_shape(question.shape), "dtype": "bfloat16"}
        Path(folder, "config.json").write_text(json.dumps(values), encoding="utf-8")
        words = ["plan", question.recipe, "--model", folder, "--gpu", question.device, "--json"]
        runs = [_timed([*words, *(["--trace"] if question.trace else [])]) for _ in range(repeats)]
    return {
        "schema_version": SCHEMA_VERSION, "question": asdict(question),
        "seconds": [seconds for seconds, _ in runs], "cpu_seconds": [cpu for _, cpu in runs],
        **circumstances(), "commit": commit_of(Path(__file__).parent),
    }  # fmt: skip


def _timed(words: list[str]) -> tuple[float, float]:
    start, before = time.perf_counter(), _children_seconds()
    finished = run_verb(*words)
    if finished.returncode:
        raise RecipeError(last_words(finished))
    return time.perf_counter() - start, _children_seconds() - before


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Ask everything, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    lines = []
    try:
        for question in QUESTIONS:
            line = measure(question, 1 if question.trace else options.repeats)
            lines.append(line)
            told = "traced" if question.trace else "closed form"
            cpu = min(line["cpu_seconds"])
            print(f"{question.recipe} {question.shape} {question.device}, {told}: {cpu:.2f} CPU s", file=sys.stderr)
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    write_lines(options.out, lines)


if __name__ == "__main__":
    main()
