"""Our recipes beside other ways to the same training: `peers_lora.json`, `peers_qlora.json` …"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.peers.record import SCHEMA_VERSION
from benchmarks.report.palette import BLACK, BLUE, GREY, plain
from benchmarks.report.pieces import NOTHING, Block, Plot, Section, Table, number, share, spread, wrap
from benchmarks.report.provenance import PACKAGES, read_provenance
from hf_peft_recipes.errors import UserError

Record = Mapping[str, Any]

RATIOS = {
    "tokens_per_second": "tokens/s",
    "peak_memory_bytes": "peak memory",
    "first_step_seconds": "start to first step",
}
"""Figure of `benchmarks.peers.ratios` to what people call it."""
_REASON_LETTERS = 200


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
    record = read_record(path)
    provenance, contenders = read_provenance(record, path.name), list(record["contenders"])
    headings = ["", *RATIOS.values(), "tokens/s here", "of the ceiling", "the same work", "other versions"]
    table = Table(provenance, headings, [_row(record, contender) for contender in contenders])
    plot, ours = None, contenders[0]
    if record.get("ratios"):
        seen = f"Ratios of {ours} to each peer with their spread, and the share of the ceiling that each reached."
        plot = Plot(provenance, f"{name}.png", seen, (11, 1.8 + 0.4 * len(contenders)), partial(draw, record))
    headings = ["ours to", *RATIOS.values(), "the same work"]
    rows = [[peer, *_ratios(record, peer), _verdict(record, peer)] for peer in record.get("ratios", {})]
    block = Block(provenance, _sentence(record), Table(provenance, headings, rows) if rows else None)
    others = any(one.get("environment") for one in record["contenders"].values())
    beside = "other frameworks" if others else "other ways"
    title = f"Beside {beside}: {record['settings']['recipe']} in {record['dtype']}"
    return Section(title, _text(record), table, plot, block)


def read_record(path: Path) -> dict[str, Any]:
    """Return the content of a file of `benchmarks.peers`.

    Raises:
        UserError: it is none, or of another schema.
    """
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = record["schema_version"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: no result of benchmarks.peers") from None
    if version != SCHEMA_VERSION:
        raise UserError(f"{path}: schema version {version!r}; this software reads {SCHEMA_VERSION}")
    return record


def _row(record: Record, name: str) -> list[str]:
    turns = [cell for cell in _cells(record, name, "turn ") if cell["status"] == "done"]
    rate = statistics.median(cell["tokens_per_second"] for cell in turns) if turns else None
    reached = record.get("ceiling", {}).get(name, {}).get("reached")
    first = next(iter(record["contenders"])) == name
    ratios = ["1"] * len(RATIOS) if first else _ratios(record, name)
    verdict = "what the others are held against" if first else _verdict(record, name)
    others = _other_versions(record, name)
    return [name, *ratios, number(rate), _shown(reached, share) if reached else NOTHING, verdict, others]


def _ratios(record: Record, peer: str) -> list[str]:
    found = record.get("ratios", {}).get(peer, {})
    return [_shown(found[figure], lambda value: f"{value:.2f}") if figure in found else NOTHING for figure in RATIOS]


def _shown(found: Mapping[str, float], shown: Any) -> str:
    """Return a median, with its spread where there is one."""
    ends = spread(found["low"], found["high"], shown)
    return shown(found["median"]) if ends == shown(found["median"]) else f"{shown(found['median'])} ({ends})"


def _verdict(record: Record, peer: str) -> str:
    checked = record.get("check", {})
    if reason := checked.get("not_checked", {}).get(peer):
        return f"no: {reason}"
    verdict = checked.get("verdicts", {}).get(peer)
    if verdict is None:
        return "not checked"
    if verdict["mismatches"]:
        return "no: " + "; ".join(verdict["mismatches"])
    worst = "; ".join(f"{what.replace('_', ' ')} within {value:.1e}" for what, value in verdict["worst"].items())
    return f"yes ({checked['steps']} steps: {worst})"


def _cells(record: Record, name: str, begins: str = "") -> list[dict[str, Any]]:
    cells = record["cells"].items()
    return [cell for title, cell in cells if title.startswith(begins) and title.rpartition("/")[2] == name]


def _other_versions(record: Record, name: str) -> str:
    """Return the versions that a contender of an environment of its own had."""
    found: Record = next((cell["versions"] for cell in reversed(_cells(record, name)) if cell.get("versions")), {})
    differing = [key for key in found if key not in PACKAGES or found[key] != record["versions"].get(key)]
    return ", ".join(f"{key} {found[key]}" for key in differing if found[key] != record["versions"].get(key))


def not_run(record: Record) -> dict[str, str]:
    """Return the contenders without a timed run, each with its reason."""
    found = dict[str, str]()
    for name in record["contenders"]:
        if any(cell["status"] == "done" for cell in _cells(record, name, "turn ")):
            continue
        cells = [cell for cell in _cells(record, name) if cell["status"] != "done"]
        status, reason = (cells[-1]["status"], cells[-1].get("reason", "")) if cells else ("not run", "")
        told = " ".join(str(reason).split())[:_REASON_LETTERS]
        found[name] = f"{status}: {told}" if told else status
    return found


def _settings(record: Record) -> str:
    settings = record["settings"]
    turns = sum(title.startswith("turn ") and title.endswith("/rate") for title in record["cells"])
    return (
        f"{settings['layers']} layers of width {settings['hidden']}, a vocabulary of {settings['vocabulary']:,},"
        f" rows of {settings['length']:,} tokens, {settings['accumulation']} a step, {settings['steps']} steps a run,"
        f" {turns} turn{'' if turns == 1 else 's'}, in {record['dtype']}"
    )


def _sentence(record: Record) -> str:
    ours, recipe = next(iter(record["contenders"])), record["settings"]["recipe"]
    told = f"`{recipe}`, ours to the peer's in the same turn, median (lowest–highest); {_settings(record)}."
    if not record.get("ratios"):
        wrong = record.get("check", {}).get("mismatches", [])
        told = f"`{recipe}`: {ours} was not timed beside others" + (f" ({'; '.join(wrong)})." if wrong else ".")
    missing = "; ".join(f"{name} ({reason})" for name, reason in not_run(record).items())
    return told + (f" Without a timed run: {missing}." if missing else "")


def _text(record: Record) -> str:
    told = (
        f"Ratios of ours to the peer's within a turn, median (lowest–highest): more tokens a second is above 1, less"
        f" memory and a shorter start are below 1. The ceiling is what the matrix products alone would allow. The work:"
        f" {_settings(record)}."
    )
    missing = [f"- without a timed run: {name}, {reason}" for name, reason in not_run(record).items()]
    return "\n".join([wrap(told), "", *missing]).rstrip()


def draw(record: Record, figure: Any) -> None:
    """Draw a field a ratio, with 1 marked, and one of the shares of the ceiling.

    Args:
        record: with ratios.
        figure: of matplotlib.
    """
    names = [name for name in record["contenders"] if name not in not_run(record)]
    fields = figure.subplots(1, len(RATIOS) + 1, sharey=True)
    for axes, (figure_name, title) in zip(fields, RATIOS.items(), strict=False):
        axes.axvline(1, color=BLACK, linewidth=1)
        axes.plot([1], [0], "D", color=BLACK, markersize=6)
        found = [(at, record["ratios"].get(name, {}).get(figure_name)) for at, name in enumerate(names)]
        for at, one in found:
            if one:
                ends = [[one["median"] - one["low"]], [one["high"] - one["median"]]]
                axes.errorbar([one["median"]], [at], xerr=ends, fmt="o", color=BLUE, capsize=4, markersize=6)
                axes.annotate(
                    f"{one['median']:.2f}", (max(1, one["high"]), at), (7, 0), textcoords="offset points", va="center",
                    fontsize=8,
                )  # fmt: skip
        axes.set_title(f"{title}: ours to the peer's", fontsize=9)
        # From 0, so that how far a ratio is from 1 is seen as it is.
        axes.set_xlim(0, 1.3 * max([1.0, *(one["high"] for _, one in found if one)]))
    shares = [record.get("ceiling", {}).get(name, {}).get("reached", {}).get("median", 0) for name in names]
    bars = fields[-1].barh(range(len(names)), [100 * value for value in shares], height=0.55, color=GREY)
    fields[-1].bar_label(bars, [share(value) if value else NOTHING for value in shares], padding=3, fontsize=8)
    fields[-1].set_xlim(0, max(1.0, 130 * max(shares, default=0)))
    fields[-1].set_title("share of the ceiling, %", fontsize=9)
    for axes in fields:
        plain(axes, "x")
    fields[0].set_yticks(range(len(names)), names)
    fields[0].set_ylim(len(names) - 0.4, -0.6)
