"""The tables at the end of a run, after an evaluation, and after a merge."""

from collections.abc import Mapping
from typing import Any

from hf_peft_recipes.metric_facts import SHARES

GIB = 2**30


def metrics_table(metrics: Mapping[str, Any], title: str, sides: tuple[str, str] = ("before", "after")) -> Any:
    """Return a rich table of every metric before and after, and by how much it grew, each with its interval.

    Args:
        metrics: as it stands in `result.json`.
        title: above the table.
        sides: what the two are called.
    """
    from rich.table import Table

    scored = (
        f"{metrics['rows']} rows of {metrics['split']}, {metrics['confidence']:.0%} intervals"
        if metrics.get("rows")
        else ""
    )
    table = Table(title=title, caption=scored, title_justify="left", caption_justify="left")
    paired = bool(metrics.get("difference"))
    table.add_column("")
    for heading in (*sides, *(["difference"] if paired else [])):
        table.add_column(heading, justify="right")
    for name in metrics["after"]:
        cells = [
            _figure(name, metrics[side][name], metrics["intervals"][side][name]) if name in metrics[side] else "-"
            for side in ("before", "after")
        ]
        if paired and name in metrics["difference"]:
            cells.append(_change(name, metrics["difference"][name], metrics["intervals"]["difference"][name]))
        table.add_row(name.replace("_", " "), *cells)
    return table


def run_table(record: Mapping[str, Any]) -> Any:
    """Return a rich table: every metric before and after with its interval, then what the run cost.

    Args:
        record: as it stands in `result.json`.
    """
    measured = record["measured"]
    table = metrics_table(record["metrics"], f"{record['recipe']}: {record['status']}")
    table.add_section()
    trainable, total = record["parameters"]["trainable"], record["parameters"]["total"]
    rows, stopping = record["data"]["ledger"]["rows"], record.get("stopping")
    for name, value in {
        "trainable parameters": f"{trainable:,} of {total:,} ({trainable / total:.2%})",
        "rows": f"{rows['kept']:,} kept, {rows['split']} split, {rows['truncated']} cut, {rows['dropped']} dropped",
        "tokens": _tokens(record),
        "tokens/s": f"{measured['tokens_per_second']:,.0f}" if measured["tokens_per_second"] else "-",
        "peak memory": f"{measured['peak_memory_bytes'] / GIB:.2f} GiB" if measured["peak_memory_bytes"] else "-",
        **({"steps": _stopped(stopping)} if stopping else {}),
        **_mishaps(record),
        "folder": record["output_dir"],
    }.items():
        table.add_row(name, "", value)
    return table


def merge_table(record: Mapping[str, Any], folder: str) -> Any:
    """Return a rich table of every way to merge, beside the unmerged adapter, and which one was kept.

    Args:
        record: as it stands in `merge.json`.
        folder: of the merged model.
    """
    from rich.table import Table

    variants, reference = record["variants"], record["unmerged"]
    tokens = max((found["divergence"]["tokens"] for found in variants.values() if "error" not in found), default=0)
    table = Table(
        title=f"{folder}: {record['into']} ({record['why']})",
        caption=f"KL from the unmerged adapter over {tokens:,} tokens; compared on {record['compared_on']}",
        title_justify="left",
        caption_justify="left",
    )
    for heading in ("", "KL, nats/token", *(name.replace("_", " ") for name in reference["metrics"]), "dtype", "size"):
        table.add_column(heading, justify="left" if not heading else "right")
    table.add_row("unmerged", "0", *(_value(*pair) for pair in reference["metrics"].items()), "", "")
    for name, found in variants.items():
        if "error" in found:
            table.add_row(name, found["error"])
            continue
        values = (_value(*pair) for pair in found["metrics"].items())
        cells = (f"{found['divergence']['mean']:.2e}", *values, found["dtype"], _size(found["size_bytes"]))
        table.add_row(name, *cells, style="bold" if name == record["into"] else "")
    return table


def _tokens(record: Mapping[str, Any]) -> str:
    """Return what was learned from: of rounds, what the model wrote itself, and what it was trained on."""
    if feedback := record.get("feedback"):
        totals = feedback["totals"]
        return f"{totals['generated_tokens']:,} generated, {totals['trained_tokens']:,} trained on"
    tokens = record["data"]["ledger"]["tokens"]
    return f"{tokens['total']:,}, {tokens['supervised']:,} with loss"


def _stopped(stopping: Mapping[str, Any]) -> str:
    ended = f"stopped at {stopping['steps']:,} of" if stopping["stopped_early"] else "all"
    best = f"{str(stopping['metric']).replace('_', ' ')} {stopping['best_value']:.4g}"
    return f"{ended} {stopping['planned_steps']:,}; saved is {stopping['best_step']:,} ({best})"


def _mishaps(record: Mapping[str, Any]) -> dict[str, str]:
    """Return what happened to a run on its way, a line a kind; nothing of one that had it easy."""
    recoveries = record.get("recoveries") or []
    left_out = [str(one["step"]) for one in recoveries if one["kind"] == "rollback"]
    smaller = [one for one in recoveries if one["kind"] == "smaller_micro_batch"]
    spikes = [f"{spike['loss']:.4g} at {spike['step']}" for spike in record.get("spikes") or []]
    rows = {
        "steps left out": f"{', '.join(left_out)} (not finite)" if left_out else "",
        "rows at a time": "",
        "loss spikes": f"{', '.join(spikes[:3])}{f' and {len(spikes) - 3} more' if len(spikes) > 3 else ''}",
    }
    if smaller:
        last = smaller[-1]
        shared = f"{last['per_device_train_batch_size']} × {last['gradient_accumulation_steps']}"
        rows["rows at a time"] = f"{shared} from step {smaller[0]['step']} on: out of memory"
    return {name: value for name, value in rows.items() if value}


def _size(number: int) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e8 else f"{number / 1e6:.2f} MB"


def _value(name: str, value: float) -> str:
    return ("{:.1%}" if name in SHARES else "{:,.4g}").format(value)


def _figure(name: str, value: float, interval: tuple[float, float]) -> str:
    low, high = (_value(name, bound) for bound in interval)
    return f"{_value(name, value)} [dim]({low} – {high})[/dim]"


def _change(name: str, value: float, interval: tuple[float, float]) -> str:
    # Of shares in percentage points.
    shown, low, high = (
        f"{100 * number:+.1f}" if name in SHARES else f"{number:+,.4g}" for number in (value, *interval)
    )
    return f"{shown}{' pp' if name in SHARES else ''} [dim]({low} to {high})[/dim]"
