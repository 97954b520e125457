"""`feedback validate`, `convert`, `import`: files of feedback, looked at and turned into others."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_peft_recipes.cli.flags import parse_flags
from hf_peft_recipes.cli.printing import print_json
from hf_peft_recipes.cli.recipes import AsJson
from hf_peft_recipes.errors import UserError, did_you_mean

_SHOWN_BAD_LINES = 20

Files = Annotated[list[Path], typer.Argument(metavar="FILE…", help="Records of feedback: JSON Lines, packed or not.")]


def validate_command(files: Files, as_json: AsJson = False) -> None:
    """Name every line that is no record of feedback, and say what there is; exit code 2 where a line is bad."""
    from hf_peft_recipes.feedback.validation import check_file, summarise

    checked = [check_file(path) for path in files]
    bad = [line for file in checked for line in file.bad]
    records = {record.id: record for file in checked for record in file.records}
    lines = len(bad) + sum(len(file.records) + file.repeated for file in checked)
    summary = summarise(list(records.values()))
    if as_json:
        print_json({
            "files": [str(path) for path in files], "lines": lines, "repeated": lines - len(bad) - len(records),
            "bad": [vars(line) for line in bad], "summary": summary,
        })  # fmt: skip
    else:
        for line in bad[:_SHOWN_BAD_LINES]:
            print(f"{line.place}: {line.reason}")
        if len(bad) > _SHOWN_BAD_LINES:
            print(f"and {len(bad) - _SHOWN_BAD_LINES:,} more")
        _print_summary(summary, lines - len(bad) - len(records))
    if bad:
        raise UserError(f"{len(bad):,} of {lines:,} lines hold no record of feedback")
    if not records:
        raise UserError(f"no feedback in {', '.join(str(path) for path in files)}")


def convert_command(
    files: Files,
    to: Annotated[str, typer.Option("--to", help="sft, dpo, kto, thumbs, ratings, edits or preferences.")],
    output: Annotated[Path, typer.Option("--output", help="The file to write: JSON Lines.")],
    accept: Annotated[
        float | None, typer.Option("--accept", min=0, max=1, help="The least score that is good enough. [default: 1]")
    ] = None,
    best_of: Annotated[
        int | None, typer.Option("--best_of", min=1, help="sft: so many answers of a row, at most. [default: 1]")
    ] = None,
    max_pairs: Annotated[
        int | None, typer.Option("--max_pairs", min=1, help="dpo: so many pairs of a row, at most. [default: 1]")
    ] = None,
    scale: Annotated[
        str | None, typer.Option("--scale", help="ratings: the worst and the best one. [default: 1-5]")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Turn records of feedback into rows that are trained on, or into a log that other software reads."""
    if output.suffix != ".jsonl":
        raise UserError(f"--output {str(output)!r}: a file that ends in .jsonl is written")
    if output.exists() and not overwrite:
        raise UserError(f"{str(output)!r} exists; --overwrite replaces it")
    from hf_peft_recipes.feedback.conversion import convert
    from hf_peft_recipes.feedback.validation import read_files

    made = convert(read_files(files), to, accept=accept, best_of=best_of, max_pairs=max_pairs, scale=scale)
    made.write(output)
    told = {
        "output": str(output), "to": to, "records": made.records, "rows_in": made.rows_in, "rows_used": made.rows_used,
        "written": len(made.rows), "left_out": made.left_out,
    }  # fmt: skip
    if as_json:
        print_json(told)
        return
    print(
        f"{output}: {_of(len(made.rows), 'line')} for {to}, of {made.rows_used:,} of {_of(made.rows_in, 'row')} "
        f"({_of(made.records, 'record')})"
    )
    _print_left_out(made.left_out)


def import_command(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="LOG", help="A file, a folder or a Hub id, as data of a run may be.")],
    log_format: Annotated[str, typer.Option("--from", help="thumbs, ratings, edits, preferences or records.")],
    output: Annotated[Path, typer.Option("--output", help="The file of records: what is new is written at its end.")],
    source: Annotated[
        str | None, typer.Option("--source", help="Who gave the feedback. [default: human; with a user human:NAME]")
    ] = None,
    scale: Annotated[
        str | None, typer.Option("--scale", help="ratings: the worst and the best one, 1-5. [default: found]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make records of feedback of a log: thumbs, ratings, edited answers, preferences.

    Columns are found by their names; --columns.ROLE NAME says otherwise: --columns.prompt question. A bad row is an
    error with its place; --on_bad_row drop leaves it out, counted.
    """
    if output.suffix != ".jsonl":
        raise UserError(f"--output {str(output)!r}: a file that ends in .jsonl is written")
    columns, drops = _import_flags(context.args)
    from hf_peft_recipes.feedback.conversion import ImportRequest, import_records
    from hf_peft_recipes.feedback.journal import Journal

    made = import_records(file, log_format, ImportRequest(columns, source, scale, drops))
    written = Journal(output).append(made.records)
    told = {
        "output": str(output), "from": log_format, "rows_in": made.rows_in, "written": written,
        "there_already": len(made.records) - written, "columns": made.columns, "left_out": made.left_out,
        "notes": made.notes,
    }  # fmt: skip
    if as_json:
        print_json(told)
        return
    already = f", {told['there_already']:,} were there already" if told["there_already"] else ""
    print(f"{output}: {_of(written, 'record')} written of {_of(made.rows_in, 'row')}{already}")
    if made.columns:
        print("columns: " + ", ".join(f"{role} is {column!r}" for role, column in made.columns.items()))
    for note in made.notes:
        print(note)
    _print_left_out(made.left_out)


def _import_flags(words: Sequence[str]) -> tuple[dict[str, str], bool]:
    columns, on_bad_row = dict[str, str](), "error"
    for flag in parse_flags(words):
        section, _, role = flag.name.removeprefix("data.").rpartition(".")
        if section == "columns":
            columns[role] = str(flag.value)
        elif flag.name.removeprefix("data.") == "on_bad_row":
            on_bad_row = str(flag.value)
        else:
            known = ("from", "output", "source", "scale", "json", "on_bad_row", "columns.prompt", "columns.completion")
            raise UserError(f"--{flag.name}: unknown flag{did_you_mean(flag.name, known)}")
    if on_bad_row not in ("error", "drop"):
        raise UserError(f"--on_bad_row {on_bad_row!r}: error or drop is wanted")
    return columns, on_bad_row == "drop"


def _print_summary(summary: Mapping[str, Any], repeated: int) -> None:
    verdicts = ("accepted", "rejected", "corrected", "refined", "commented")
    print(f"{_of(summary['records'], 'record')} on {_of(summary['rows'], 'row')}")
    print(", ".join(f"{summary[verdict]:,} {verdict}" for verdict in verdicts))
    for key in ("sources", "rounds", "models"):
        if summary[key]:
            print(f"{key}: {', '.join(f'{name} ({number:,})' for name, number in summary[key].items())}")
    if repeated:
        print(f"{_of(repeated, 'line')} said again, each counted once")


def _print_left_out(left_out: Mapping[str, int]) -> None:
    for reason, number in left_out.items():
        print(f"left out: {reason}: {number:,}")


def _of(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
