"""The command line of the report, see `benchmarks.report`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import benchmarks.report
from benchmarks.report import (
    checkpoints,
    equivalence,
    faults,
    feedback,
    float8,
    generation,
    gpu_plan,
    matrix,
    memory,
    paths,
    peers,
    planning,
    quality,
    real_tasks,
    soak,
    throughput,
)
from benchmarks.report.blocks import fill
from benchmarks.report.pieces import Section
from benchmarks.report.recipe_headers import headed
from hf_peft_recipes.errors import RecipeError, UserError
from hf_peft_recipes.registry import shipped_folder
from hf_peft_recipes.results import write_text

Room = Callable[[Path, str], Section | None]
"""(a result file, the name of its plot) -> what is told of it."""

SECTIONS: dict[str, tuple[str, Room]] = {
    "planning": ("planning.jsonl", planning.report),
    "memory": ("memory.jsonl", memory.report),
    "memory_bfloat16": ("memory_bfloat16.jsonl", memory.report),
    "gpu_plan": ("gpu/plan.jsonl", gpu_plan.report),
    "throughput": ("throughput.jsonl", throughput.report),
    "throughput_bfloat16": ("throughput_bfloat16.jsonl", throughput.report),
    "generation": ("generation.jsonl", generation.report),
    "paths_lora": ("paths_lora.json", paths.report),
    "paths_qlora": ("paths_qlora.json", paths.report),
    "peers_lora": ("peers_lora.json", peers.report),
    "peers_lora_bfloat16": ("peers_lora_bfloat16.json", peers.report),
    "peers_qlora": ("peers_qlora.json", peers.report),
    "peers_frameworks": ("peers_frameworks.json", peers.report),
    "real_tasks": ("real_tasks.jsonl", real_tasks.report),
    "matrix": ("matrix.jsonl", matrix.report),
    "feedback": ("feedback.jsonl", feedback.report),
    "quality": ("quality.jsonl", quality.report),
    "quality_real": ("quality_real.jsonl", quality.report),
    "float8": ("float8.jsonl", float8.report),
    "float8_memory": ("float8_memory.jsonl", memory.report),
    "faults": ("faults.json", faults.report),
    "soak": ("soak.json", soak.report),
    "checkpoints": ("checkpoints.jsonl", checkpoints.report),
    "equivalence": ("equivalence.jsonl", equivalence.report),
}
"""The name of a block of the README and of a plot, to its result file and its room; in the report's order."""
RESULTS = Path(__file__).parents[1] / "results"
README = Path(__file__).parents[2] / "README.md"
REPORT = "REPORT.md"
HEAD = """\
# What was measured

Made by `python -m benchmarks.report` from the files beside it; not written by hand. How each was measured stands at the
head of its benchmark.
"""


def read_sections(results: Path) -> dict[str, Section | None]:
    """Return what each result file becomes; None for one that is not there.

    Args:
        results: the folder of result files.

    Raises:
        UserError: a file of another schema, or figures without their provenance.
    """
    return {name: room(results / file, name) for name, (file, room) in SECTIONS.items()}


def texts(sections: dict[str, Section | None], results: Path, readme: Path, recipes: Path) -> dict[Path, str]:
    """Return what each text file is to say now.

    Args:
        sections: of the result files.
        results: the folder that gets the report.
        readme: with marked blocks.
        recipes: the folder of recipes and their receipts.

    Raises:
        UserError: an unknown block, or a receipt without its provenance.
    """
    if not readme.is_file():
        raise UserError(f"{readme}: there is no such file")
    told = [section.markdown() for section in sections.values() if section]
    blocks = {name: section.block.markdown() if section else "" for name, section in sections.items()}
    filled = fill(readme.read_text(encoding="utf-8"), blocks, str(readme))
    return {results / REPORT: "\n".join([HEAD, *told]), readme: filled, **headed(recipes)}


def changed(found: dict[Path, str]) -> list[Path]:
    """Return the files that do not say what they are to say."""
    return [path for path, text in found.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]


def write_changed(found: dict[Path, str]) -> None:
    """Write the files that do not say what they are to say."""
    for path in changed(found):
        write_text(path, found[path])


def main(words: list[str] | None = None) -> int:
    """Write what is to be written, or tell what would be; return the exit code.

    Args:
        words: of the command line; None takes the process's own.
    """
    parser = argparse.ArgumentParser(
        "benchmarks.report", description=benchmarks.report.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files and the report")
    parser.add_argument("--readme", type=Path, default=README)
    parser.add_argument("--recipes", type=Path, default=shipped_folder(), help="folder of recipes and their receipts")
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 where something would change")
    options = parser.parse_args(words)
    try:
        sections = read_sections(options.results)
        found = texts(sections, options.results, options.readme, options.recipes)
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    plots = [section.plot for section in sections.values() if section and section.plot]
    differing = changed(found)
    if options.check:
        # A picture's bytes differ with the version of what draws it.
        missing = [options.results / plot.file for plot in plots if not (options.results / plot.file).is_file()]
        for path in [*differing, *missing]:
            print(f"{path}: not what the results say; python -m benchmarks.report writes it", file=sys.stderr)
        return 1 if differing or missing else 0
    write_changed(found)
    for plot in plots:
        plot.write(options.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
