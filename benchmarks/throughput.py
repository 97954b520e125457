"""How fast recipes train here: real and supervised tokens a second, step times, MFU and HFU, and the other phases.

    python -m benchmarks.throughput [--steps 5] [--out benchmarks/results/throughput.jsonl]

Every cell is a `train` in a fresh process with the machine to itself, on documents of skewed lengths, packed. What
plans said of its speed stands beside it: the one from rates alone, and the one that times a step.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from hf_peft_recipes.bench.cell import Cell
from hf_peft_recipes.bench.suite import run_cells
from hf_peft_recipes.cli.printing import print_rich
from hf_peft_recipes.device import detect_device
from hf_peft_recipes.errors import RecipeError
from hf_peft_recipes.plan.profiles import measure_cpu
from hf_peft_recipes.report.bench import bench_table, cell_line

RECIPES, SIZES = ("lora", "qlora", "full"), ("s", "m")
OUT = Path(__file__).parent / "results" / "throughput.jsonl"


def cells(steps: int) -> list[Cell]:
    """Return the cells, small ones first: each recipe at two sizes, and once with checkpointing."""

    def cell(recipe: str, size: str, checkpointing: bool = False) -> Cell:
        # Steps of four rows: speed is the same as in longer ones, and there are more of them in the time.
        rows = {"gradient_accumulation_steps": 4}
        return Cell(recipe, size, 512, checkpointing, "skewed", steps, 1, overrides=rows, timed_plan=True)

    return [*(cell(recipe, size) for size in SIZES for recipe in RECIPES), cell("lora", SIZES[-1], checkpointing=True)]


def main() -> None:
    """Measure what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--keep", action="store_true", help="take results of other commits too")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    try:
        if detect_device().kind == "cpu":
            # The rate that shares of the peak are shares of is of today; other users of the machine make it seem less.
            measure_cpu(detect_device(), seconds=3.0)
        with tempfile.TemporaryDirectory() as scratch:
            lines = run_cells(
                cells(options.steps), options.out, Path(scratch), keep=options.keep,
                told=lambda line, fresh: print(cell_line(line, fresh), file=sys.stderr, flush=True),
            )  # fmt: skip
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print_rich(bench_table(lines))


if __name__ == "__main__":
    main()
