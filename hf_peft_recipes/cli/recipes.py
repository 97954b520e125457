"""`list`, `show`, `cp`: recipes as they lie on the shelf."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_peft_recipes import registry
from hf_peft_recipes.api import capability_table, resolve_recipe
from hf_peft_recipes.api.matrix import Pair
from hf_peft_recipes.api.shelf import lookup
from hf_peft_recipes.cli.flags import parse_flags
from hf_peft_recipes.cli.printing import print_json, print_rich
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.spec import kind_of, load_part
from hf_peft_recipes.spec.entries import SCALARS, SECTIONS


def complete_name(incomplete: str) -> list[str]:
    """Return the recipe names that begin so, for the shell."""
    return [name for name in registry.list_names() if name.startswith(incomplete)]


Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help="A recipe, several joined by +, or a YAML file.", autocompletion=complete_name),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ForDevice = Annotated[
    str | None, typer.Option("--device", help="Resolve for this device (H100, cpu …), not for yours.")
]
Exact = Annotated[bool, typer.Option("--exact", help="Keep what a run's recipe.yaml took for its device.")]


def list_command(
    pattern: Annotated[str, typer.Argument(help="A shell pattern, as '*lora*'; with --hub, part of a name.")] = "*",
    hub: Annotated[bool, typer.Option("--hub", help="List what is published: runs and recipes on the Hub.")] = False,
    author: Annotated[str | None, typer.Option("--author", help="With --hub: whose.")] = None,
    matrix: Annotated[bool, typer.Option("--matrix", help="Show which method goes with which objective.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the recipes: methods, objectives, and complete ones."""
    if matrix:
        _list_pairs(as_json)
        return
    if hub:
        _list_published(None if pattern == "*" else pattern, author, as_json)
        return
    if author:
        raise UserError("--author does nothing without --hub")
    rows = []
    for name in registry.list_names(pattern):
        source = registry.find(name)
        # A recipe of somebody else's code is named, not run.
        if source.path is None:
            rows.append({"name": name, "kind": "registered", "summary": "", "origin": source.origin})
            continue
        part, kind = load_part(name, lookup), kind_of(name, lookup)
        rows.append({"name": name, "kind": kind, "summary": part.summary, "origin": source.origin})
    if as_json:
        print_json(rows)
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        print(f"{row['name']:<{width}}  {row['kind']:<10}  {row['summary'] or row['origin']}")


def _list_pairs(as_json: bool) -> None:
    """Print a line a method, a column an objective, and a line for each reason why a pair is refused."""
    pairs = capability_table()
    if as_json:
        print_json([{**vars(pair), "name": pair.name} for pair in pairs])
        return
    reasons = list(dict.fromkeys(_reason(pair) for pair in pairs if pair.refused))
    objectives = list(dict.fromkeys(pair.objective for pair in pairs))
    width = max(len(pair.method) for pair in pairs)
    print(" " * width, *objectives, sep="  ")
    for method in dict.fromkeys(pair.method for pair in pairs):
        row = {pair.objective: pair for pair in pairs if pair.method == method}
        marks = [str(1 + reasons.index(_reason(row[each]))) if row[each].refused else "yes" for each in objectives]
        cells = (f"{mark:<{len(each)}}" for mark, each in zip(marks, objectives, strict=True))
        print(f"{method:<{width}}", *cells, sep="  ")
    for number, reason in enumerate(reasons, 1):
        print(f"{number}: {reason}")


def _reason(pair: Pair) -> str:
    """Return why a pair is refused, whatever it is called; empty where it is not."""
    _, _, reason = pair.refused.partition(" does not go with ")
    return reason.partition(": ")[2] or pair.refused.partition(": ")[2] or pair.refused


def _list_published(pattern: str | None, author: str | None, as_json: bool) -> None:
    from hf_peft_recipes.hub.shelf import list_published

    found = list_published(pattern, author)
    if as_json:
        print_json([vars(published) for published in found])
        return
    width = max((len(published.repo_id) for published in found), default=0)
    for published in found:
        what = f"on {published.base_model}" if published.base_model else "a recipe"
        print(f"{published.repo_id:<{width}}  {published.downloads:>8,} downloads  {what}")


def show_command(
    context: typer.Context, name: Name, as_json: AsJson = False, device: ForDevice = None, exact: Exact = False
) -> None:
    """Show every value of a recipe, where it came from, and why it is so. Takes the flags of `train`."""
    table = resolve_recipe(name, parse_flags(context.args), device, exact).show()
    if as_json:
        print_json(table)
        return
    rows = [("objective", table["objective"], "", "")]
    rows += [(key, *table[key].values()) for key in SCALARS[1:] if key in table]
    for section in SECTIONS:
        values = table.get(section)
        if values is None and section in table:
            rows.append((section, None, "none", ""))
        for key, entry in (values or {}).items():
            rows.append((f"{section}.{key}", entry["value"], entry["origin"], entry["reason"]))
    print(f"{table['name']}: {table['summary']}\n")
    _print_columns(rows)


def copy_command(
    name: Name,
    file: Annotated[Path, typer.Argument(help="The YAML file to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Copy a recipe to a file, to edit it and run it by its path."""
    if file.exists() and not overwrite:
        raise UserError(f"{str(file)!r} exists; --overwrite replaces it")
    source = None if "+" in name else registry.find(name)
    # A single file comes with its comments and its `extends`; a joined one is written out.
    text = source.read() if source and source.path else resolve_recipe(name, []).to_yaml()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(str(text), encoding="utf-8")
    print(f"{file}: edit it, then `hf-peft-recipes train {file} …`")


def _print_columns(rows: list[tuple[str, Any, str, str]]) -> None:
    written = [(key, _yaml_word(value), origin, reason) for key, value, origin, reason in rows]
    if not sys.stdout.isatty():
        widths = [max(len(row[column]) for row in written) for column in range(3)]
        for key, value, origin, reason in written:
            note = f"  # {reason}" if reason else ""
            print(f"{key:<{widths[0]}}  {value:<{widths[1]}}  {origin:<{widths[2]}}{note}".rstrip())
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for heading, style in (("key", "bold"), ("value", "cyan"), ("from", "dim"), ("why", "")):
        table.add_column(heading, style=style, overflow="fold")
    for row in written:
        table.add_row(*map(Text, row))
    print_rich(table)


def _yaml_word(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else repr(value) if value in ("", "\n") else str(value)
