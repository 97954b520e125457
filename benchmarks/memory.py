"""What the planner predicts against what real runs take, phase by phase: recipes × sizes × lengths × checkpointing.

    python -m benchmarks.memory [--cells lora-s-512-off …] [--together 2] [--out benchmarks/results/memory.jsonl]
    python -m benchmarks.memory --float32 --out benchmarks/results/memory.jsonl
    python -m benchmarks.memory --recipes lora_fp8 --out benchmarks/results/float8_memory.jsonl
    python -m benchmarks.memory --compare        # what is predicted now against what was measured before

Every cell is a `train` in a fresh process, on a Llama with random weights, over rows that are full to the last token.
Cells run beside each other, a thread each: memory does not mind, and speed is not taken here.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hf_peft_recipes.bench.cell import Cell, plan_cell
from hf_peft_recipes.bench.shapes import make_model
from hf_peft_recipes.bench.suite import read_lines, run_cells, write_lines
from hf_peft_recipes.errors import RecipeError
from hf_peft_recipes.measure.facts import commit_of
from hf_peft_recipes.report.bench import cell_line

FLOAT32 = {"qlora": {"bf16": False, "bnb_4bit_compute_dtype": "float32"}}
"""Overrides of recipes whose own number is another one than the model's."""
RECIPES, SIZES, LENGTHS = ("lora", "qlora", "full"), ("s", "m", "l"), (128, 512, 1024)
PHASES = ("load", "train", "evaluate", "save")
WITHIN = 0.10
OUT = Path(__file__).parent / "results" / "memory.jsonl"


def cells(recipes: Sequence[str] = RECIPES, float32: bool = False) -> Iterator[Cell]:
    """Yield the cells of the grid, small ones first, and two whose documents are of all lengths.

    Args:
        recipes: of the grid; the two are the first one's.
        float32: whether they are computed as on a processor without products in bfloat16.
    """
    for size in SIZES:
        for length in LENGTHS:
            for recipe in recipes:
                for checkpointing in (False, True):
                    yield _cell(recipe, size, length, checkpointing, float32)
    for length in LENGTHS[1:]:
        yield _cell(recipes[0], "s", length, False, float32, "ragged")


def _cell(recipe: str, size: str, length: int, checkpointing: bool, float32: bool, lengths: str = "full") -> Cell:
    # The optimizer's states are there from the second step on; two micro-batches a step find each other's gradients.
    overrides: dict[str, Any] = {"gradient_accumulation_steps": 2} if lengths == "full" else {}
    if float32:
        overrides |= FLOAT32.get(recipe, {"bf16": False, "dtype": "float32"})
    return Cell(recipe, size, length, checkpointing, lengths, steps=2, warmup=0, overrides=overrides)


def errors(line: dict[str, Any]) -> dict[str, float]:
    """Return by how much each phase's prediction is off, as a share of what was measured.

    Args:
        line: of a cell that ran through.
    """
    phases, planned = line["measured"]["phases"], line["planned"]["phases"]
    measured = {phase: phases[phase]["allocated_bytes"] or phases[phase]["host_bytes"] for phase in PHASES}
    return {phase: planned[phase] / measured[phase] - 1 for phase in PHASES}


def compare(lines: Sequence[dict[str, Any]]) -> None:
    """Print every cell's errors and what they come to."""
    done = [line for line in lines if line["status"] == "done"]
    for line in done:
        told = "  ".join(f"{phase} {error:+6.1%}" for phase, error in errors(line).items())
        print(f"{line['name']:<50} {line['measured']['peak_memory_bytes'] / 2**20:7.0f} MiB  {told}")
    for phase in PHASES if done else ():
        off = [errors(line)[phase] for line in done]
        inside = sum(abs(error) <= WITHIN for error in off)
        print(
            f"{phase:<9} {inside} of {len(off)} within {WITHIN:.0%}; worst {max(off, key=abs):+.1%}, "
            f"mean of amounts {statistics.mean(map(abs, off)):.1%}"
        )


def main() -> None:
    """Measure what is missing, print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--float32", action="store_true", help="as on a processor without products in bfloat16")
    parser.add_argument("--cells", nargs="+", help="names, or what they begin with; all by default")
    parser.add_argument("--together", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", action="store_true", help="take results of other commits too")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--compare", action="store_true", help="predict again, measure nothing, write the file anew")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    begins = tuple(options.cells or [""])
    wanted = [cell for cell in cells(options.recipes, options.float32) if cell.name.startswith(begins)]
    try:
        with tempfile.TemporaryDirectory() as scratch:
            if options.compare:
                compare(_predicted_again(options.out, Path(scratch)))
                return
            compare(
                run_cells(
                    wanted, options.out, Path(scratch), keep=options.keep, together=options.together,
                    told=lambda line, fresh: print(cell_line(line, fresh), file=sys.stderr, flush=True),
                )
            )  # fmt: skip
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _predicted_again(path: Path, scratch: Path) -> list[dict[str, Any]]:
    """Return the file's lines with what the planner says today, and write them."""
    lines = read_lines(path)
    for line in lines:
        cell = Cell(**line["cell"])
        line["planned"] = plan_cell(cell, make_model(scratch, cell.shape, cell.quantized_files))
        line["planned_at"] = commit_of(Path(__file__).parent)
    write_lines(path, lines)
    return lines


if __name__ == "__main__":
    main()
