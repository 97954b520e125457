"""How fast answers are drawn: `generation.jsonl`."""

from __future__ import annotations

import statistics
from pathlib import Path

from benchmarks.report.lines import done, listed, read_results
from benchmarks.report.pieces import NOTHING, Block, Section, Table, number, spread, wrap
from hf_peft_recipes.bench.suite import Line

_HEADINGS = ("model", "way", "completions/s", "range", "tokens a completion", "ours is faster by", "range of that")
_TEXT = (
    "Completions to the same prompts with the same options, each way in turn in one process, in float32, a LoRA adapter"
    " beside its base. One by one, prompt by prompt and batches of 16 prompts are `generate` of transformers."
    " Figures are medians of the rounds; a ratio is of one round."
)


def report(path: Path, name: str) -> Section | None:
    """Return what is told of the file; None where there is none.

    Args:
        path: of the result file.
        name: of the section.

    Raises:
        UserError: a line of another schema, or without its provenance.
    """
    found = read_results(path)
    if found is None:
        return None
    lines, provenance = found
    measured = done(lines)
    table = Table(provenance, _HEADINGS, [row for line in measured for row in _rows(line)])
    told = listed([f"{_ratio(line)} times on {line['cell']['model']}" for line in measured])
    block = Block(provenance, f"Completions a second beside those of `generate`, called once a completion: {told}.")
    return Section("Drawing answers", wrap(_TEXT), table, None, block)


def _ratio(line: Line) -> str:
    return number(statistics.median(line["ratios"]["one by one"]), 1)


def _rows(line: Line) -> list[list[str]]:
    rows = []
    for way, figures in line["ways"].items():
        rates, ratios = figures["completions_per_second"], line["ratios"].get(way)
        rows.append(
            [
                f"{line['cell']['model']}", way, number(statistics.median(rates), 1), _range(rates),
                number(figures["tokens_a_completion"], 1),
                number(statistics.median(ratios), 1) if ratios else NOTHING, _range(ratios) if ratios else NOTHING,
            ]
        )  # fmt: skip
    return rows


def _range(values: list[float]) -> str:
    return spread(min(values), max(values), lambda value: number(value, 1))
