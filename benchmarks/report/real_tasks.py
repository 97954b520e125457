"""Every objective on public data: `real_tasks.jsonl`."""

from __future__ import annotations

from pathlib import Path

from benchmarks.report.lines import done, read_results
from benchmarks.report.pieces import NOTHING, Block, Section, Table, number, share, spread, wrap
from hf_peft_recipes.bench.suite import Line
from hf_peft_recipes.metric_facts import SHARES

_TEXT = (
    "Small models, so that the path is what is tried: a pretrained Llama of 260 thousand parameters, the embedded"
    " encoder with decoder, and a BERT with random weights. The interval is a bootstrap's, over held-out rows, after"
    " training."
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
    headings = ("command", "steps", "metric", "before", "after", "95 % interval", "certificate", "train s")
    table = Table(provenance, headings, [_row(line) for line in lines])
    short = ("run", "steps", "metric", "before", "after", "95 % interval", "loss before", "loss after")
    block = Block(
        provenance,
        "Every objective on public data, by `python -m benchmarks.real_tasks`.",
        Table(provenance, short, [_short(line) for line in done(lines)]),
    )
    return Section("Every objective on public data", wrap(_TEXT), table, None, block)


def _row(line: Line) -> list[str]:
    told = [f"`train {line['command']}`", str(line["steps"])]
    if line["status"] != "done":
        return [*told, line["status"], line["detail"], *[NOTHING] * 4]
    return [*told, *_figures(line), line["certificate"], number(line["train_seconds"], 1)]


def _short(line: Line) -> list[str]:
    losses = [f"{line[side]['loss']:.3f}" if "loss" in line[side] else NOTHING for side in ("before", "after")]
    return [line["name"].replace("_", " "), str(line["steps"]), *_figures(line), *losses]


def _figures(line: Line) -> list[str]:
    metric = line["metric"]

    def shown(value: float) -> str:
        return share(value) if metric in SHARES else f"{value:.3f}"

    before = line["before"].get(metric)
    after, (low, high) = line["after"][metric], line["intervals"]["after"][metric]
    return [
        metric.replace("_", " "), NOTHING if before is None else shown(before), shown(after), spread(low, high, shown)
    ]  # fmt: skip
