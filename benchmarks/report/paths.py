"""What each faster path brings to a step, and where its time goes: `paths_lora.json`, `paths_qlora.json`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.paths import ALL, SCHEMA_VERSION, UPSTREAM
from benchmarks.report.palette import colours_of, plain
from benchmarks.report.pieces import MIB, Block, Plot, Section, Table, number, share, spread, wrap
from benchmarks.report.provenance import read_provenance
from hf_peft_recipes.errors import UserError

Result = Mapping[str, Any]

_HEADINGS = ("a step by", "its time to that by all paths", "tokens/s", "of the products' rate", "kept of a row, MiB")
_TEXT = (
    "One batch and one trainer in one process; each side takes a step in turn: forward, back, clipping, optimizer. "
    "Ratios are of one turn. The products' rate is the highest that this machine has shown; the share counts the "
    "arithmetic that the work needs, whoever does it. The plot shows where the time of one profiled step goes."
)


def report(path: Path, name: str) -> Section | None:
    """Return what is told of the file; None where there is none.

    Args:
        path: of the result file.
        name: of the plot's file, without its ending.

    Raises:
        UserError: a file of another schema, or without its provenance.
    """
    if not path.is_file():
        return None
    result = json.loads(path.read_text(encoding="utf-8"))
    if result.get("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"{path}: schema version {result.get('schema_version')!r}; this software reads {SCHEMA_VERSION}"
        )
    provenance, recipe = read_provenance(result, path.name), result["settings"]["recipe"]
    table = Table(provenance, _HEADINGS, [_row(result, side) for side in result["seconds"]])
    shares = [result["profiles"][side]["shares"] for side in (UPSTREAM, ALL)]
    seen = "Seconds of a step by what they are spent on, by upstream's code and by all paths."
    plot = Plot(provenance, f"{name}.png", seen, (9, 2.4), lambda figure: _draw(figure, result))
    products = share(shares[1].get("matrix products", 0))
    rate = number(statistics.median(result["product_flops"]) / 1e9)
    told = (
        f"A {recipe} step of {result['tokens'][0]} packed tokens by upstream's code takes "
        f"{_spread(result['time_to_all_paths'][UPSTREAM], 2)} times as long as by all faster paths, which reach "
        f"{_spread(result['share_of_product_rate'][ALL], 2)} of the products' rate ({rate} GFLOP/s); products are "
        f"{products} of the step. "
        f"Of a row all paths keep {number(result['kept_bytes'][ALL] / MIB)} MiB for the way back, upstream's code "
        f"{number(result['kept_bytes'][UPSTREAM] / MIB)}."
    )
    return Section(f"What each faster path brings: {recipe}", wrap(_TEXT), table, plot, Block(provenance, told))


def _row(result: Result, side: str) -> list[str]:
    return [
        side,
        _spread(result["time_to_all_paths"][side], 2),
        _spread(result["tokens_per_second"][side], 0),
        _spread(result["share_of_product_rate"][side], 2),
        number(result["kept_bytes"][side] / MIB),
    ]


def _spread(found: Mapping[str, float], digits: int) -> str:
    low, high = found["low"], found["high"]
    return f"{number(found['median'], digits)} ({spread(low, high, lambda value: number(value, digits))})"


def _draw(figure: Any, result: Result) -> None:
    axes, profiles = figure.add_subplot(), result["profiles"]
    groups = list(dict.fromkeys(group for side in (ALL, UPSTREAM) for group in profiles[side]["shares"]))
    left = [0.0, 0.0]
    for group, colour in colours_of(groups).items():
        seconds = [profiles[side]["step_seconds"] * profiles[side]["shares"].get(group, 0) for side in (ALL, UPSTREAM)]
        axes.barh([ALL, UPSTREAM], seconds, left=left, color=colour, label=group)
        left = [start + more for start, more in zip(left, seconds, strict=True)]
    axes.set_xlabel("seconds a step")
    axes.legend(fontsize=7, ncols=2, frameon=False, loc="lower right")
    plain(axes, "x")
