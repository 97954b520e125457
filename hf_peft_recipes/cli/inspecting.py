"""`inspect`: the data before anything is trained."""

from pathlib import Path
from typing import Annotated

import typer

from hf_peft_recipes.api import resolve_recipe
from hf_peft_recipes.cli.flags import parse_flags
from hf_peft_recipes.cli.printing import print_json, print_rich
from hf_peft_recipes.cli.recipes import AsJson, Name
from hf_peft_recipes.errors import UserError


def inspect_command(
    context: typer.Context,
    name: Name,
    rows: Annotated[int, typer.Option("--rows", min=0, help="How many rows to show, evenly spaced.")] = 3,
    row: Annotated[int | None, typer.Option("--row", help="Show this row alone, counted from 0.")] = None,
    longest: Annotated[bool, typer.Option("--longest", help="Show the longest rows.")] = False,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page to this file, for a browser.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what the data are taken for, where every row goes, and which tokens carry loss. Loads no weights.

    Takes the flags of `train`: --dataset, --model, --data.columns.prompt, --max_length …
    """
    if html is not None and not html.parent.is_dir():
        raise UserError(f"--html {str(html)!r}: no such folder")
    inspection = resolve_recipe(name, parse_flags(context.args)).inspect(rows, row, longest)
    if as_json:
        print_json(inspection)
    if html is not None:
        from hf_peft_recipes.report.inspection_page import inspection_page

        html.write_text(inspection_page(inspection), encoding="utf-8")
        print(f"{html}: open it in a browser")
    if as_json or html is not None:
        return
    from hf_peft_recipes.report.inspection import inspection_view

    print_rich(inspection_view(inspection))
