"""`bench`: what recipes take on this machine, beside what was planned."""

import itertools
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from hf_peft_recipes.cli.flags import parse_flags
from hf_peft_recipes.cli.printing import print_json, print_rich
from hf_peft_recipes.cli.recipes import AsJson
from hf_peft_recipes.errors import UserError


def bench_command(
    context: typer.Context,
    recipes: Annotated[str, typer.Option("--recipes", help="Names, with commas between.")] = "lora,qlora,full",
    shapes: Annotated[
        str, typer.Option("--shapes", help="embedded, tiny, s, m, l, 135m, 0.5b, 1b, 3b, 8b, 32b, 70b.")
    ] = "embedded",
    lengths: Annotated[str, typer.Option("--lengths", help="Tokens of a row, with commas between.")] = "512",
    checkpointing: Annotated[str, typer.Option("--checkpointing", help="off, on, or off,on.")] = "off",
    documents: Annotated[str, typer.Option("--documents", help="full, ragged or skewed: how long texts are.")] = "full",
    steps: Annotated[int, typer.Option("--steps", min=1, help="Optimizer steps that count.")] = 6,
    warmup: Annotated[int, typer.Option("--warmup", min=0, help="Optimizer steps before them.")] = 2,
    out: Annotated[
        Path | None, typer.Option("--out", help="JSON Lines, a line a cell; goes on where it stopped.")
    ] = None,
    scratch: Annotated[Path | None, typer.Option("--scratch", help="Keeps the models that are made here.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Take results of other commits too.")] = False,
    busy: Annotated[bool, typer.Option("--busy", help="Measure though others use the GPU.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure recipes: memory by phase, tokens a second, and both beside the plan. Each cell is a run of its own.

    The models have random weights; dense speed and memory are those of real ones. Takes the flags of `train`.
    """
    from hf_peft_recipes.bench.cell import Cell
    from hf_peft_recipes.bench.suite import run_cells
    from hf_peft_recipes.report.bench import bench_table, cell_line

    overrides = {flag.name: flag.value for flag in parse_flags(context.args)}
    grid = itertools.product(_words(recipes), _words(shapes), _numbers(lengths), _switches(checkpointing))
    cells = [
        Cell(recipe, shape, length, on, documents, steps, warmup, overrides=overrides)
        for recipe, shape, length, on in grid
    ]
    with tempfile.TemporaryDirectory() as folder:
        lines = run_cells(
            cells, out or Path(folder) / "bench.jsonl", scratch or Path(folder), keep, busy,
            told=lambda line, fresh: print(cell_line(line, fresh), file=sys.stderr, flush=True),
        )  # fmt: skip
    if as_json:
        print_json(lines)
        return
    print_rich(bench_table(lines))


def _words(text: str) -> list[str]:
    found = [word.strip() for word in text.split(",") if word.strip()]
    if not found:
        raise UserError("a list with nothing in it")
    return found


def _numbers(text: str) -> list[int]:
    words = _words(text)
    if wrong := [word for word in words if not word.isdigit() or int(word) < 1]:
        raise UserError(f"--lengths {wrong[0]}: whole numbers above 0 are wanted")
    return [int(word) for word in words]


def _switches(text: str) -> list[bool]:
    known = {"off": False, "on": True}
    words = _words(text)
    if wrong := [word for word in words if word not in known]:
        raise UserError(f"--checkpointing {wrong[0]}: off and on are known")
    return [known[word] for word in words]
