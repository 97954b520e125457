"""What a run will need, as a person reads it."""

from collections.abc import Mapping
from typing import Any

from hf_peft_recipes.spec.recompute import NOTHING, OFF, read_recompute

GIB = 2**30

_PARTS = {
    "weights": "weights, not quantised",
    "weights_quantized": "weights, quantised",
    "optimizer": "optimizer states",
    "activations": "saved activations",
    "logits": "loss and logits",
    "dequantization": "a weight made whole",
    "libraries": "libraries",
    "mapped_files": "pages of the model's files",
    "kernels": "kernels kept by oneDNN",
    "fragmentation": "holes",
}


def plan_view(plan: Mapping[str, Any]) -> Any:
    """Return rich tables: the parts at training's peak, the phases, what would fit, what was assumed.

    Args:
        plan: as `MemoryPlan.shown` returns it.
    """
    from rich.console import Group
    from rich.table import Table

    table = Table(title=_title(plan), title_justify="left", min_width=60)
    table.add_column("at the peak of training")
    table.add_column("GiB", justify="right")
    for part, size in sorted(plan["parts"].items(), key=lambda pair: -pair[1]):
        table.add_row(_PARTS.get(part, part), _gib(size))
    table.add_section()
    for phase, size in plan["phases"].items():
        mark = " [bold]← most[/bold]" if phase == plan["peak_phase"] else ""
        table.add_row(f"{phase}{mark}", _gib(size))
    table.add_section()
    verdict = "[green]fits[/green]" if plan["fits"] else "[red]does not fit[/red]"
    table.add_row(f"{plan['device']}: {verdict}", _gib(plan["memory_bytes"]))
    lines = [_step(plan)]
    if plan["data"]:
        lines.append(_data(plan["data"]))
    if plan["tokens_per_second"]:
        lines.append(_speed(plan))
    if plan["limits"]:
        batch, length = plan["limits"]["batch"], plan["limits"]["length"]
        most = f"at most {batch:,} rows of this length at a time, or one row of {length:,} tokens"
        lines.append(most if length else "nothing fits as it is, not even one short row")
    if plan["traced_peak_bytes"]:
        lines.append(f"traced: one step takes {_gib(plan['traced_peak_bytes'])} GiB, without libraries and holes")
    lines += [f"assumed: {told}" for told in plan["assumptions"]]
    parts: list[Any] = [table, "\n".join(lines)]
    if plan["advice"]:
        parts.insert(1, _advice(plan["advice"]))
    return Group(*parts)


def rehearsal_lines(rehearsal: Mapping[str, Any]) -> list[str]:
    """Return a line a phase, what was measured beside what was planned, and one on what is left.

    Args:
        rehearsal: as `Rehearsal.shown` returns it.
    """
    lines = [f"rehearsal: it fits, seen in {rehearsal['seconds']:.0f} s"]
    for phase, size in rehearsal["measured"].items():
        planned = rehearsal["planned"].get(phase)
        beside = f", planned {_gib(planned)} ({planned / size - 1:+.1%})" if planned else ""
        lines.append(f"  {phase:<9}{_gib(size)} GiB{beside}")
    most = rehearsal["reserved_bytes"] or max(rehearsal["measured"].values(), default=0)
    lines.append(f"  of {_gib(rehearsal['memory_bytes'])} GiB {_gib(rehearsal['memory_bytes'] - most)} were left")
    return lines


def _advice(advice: list[Mapping[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(title="what would change it, the cheapest that fits first", title_justify="left")
    for heading in ("change", "GiB", "fits", "time a token"):
        table.add_column(heading, justify="left" if heading == "change" else "right")
    for change in advice:
        fits = "yes" if change["fits"] else "no"
        table.add_row(change["change"], _gib(change["total_bytes"]), fits, f"× {change['time_factor']:.2f}")
    return table


def _title(plan: Mapping[str, Any]) -> str:
    number = f"{plan['devices']} × {plan['device']} ({plan['sharding']})" if plan["devices"] > 1 else plan["device"]
    return f"{plan['recipe']} of {plan['model']} on {number}"


def _step(plan: Mapping[str, Any]) -> str:
    step, trainable, total = plan["step"], plan["trainable"], plan["parameters"]
    again = ", checkpointing" if step["checkpointing"] else ""
    if plan["recompute"] != OFF:
        amount, factor = read_recompute(plan["recompute"]) or NOTHING, plan["recompute_time_factor"]
        again = f", computing again {amount.of(step['layers'])} (time a token × {factor:.2f})"
    return (
        f"{trainable:,} of {total:,} parameters train; {step['batch']} × {step['length']:,} tokens at a time, "
        f"{step['accumulation']} times a step{again}"
    )


def _speed(plan: Mapping[str, Any]) -> str:
    hours = f", {plan['hours']:.2g} hours" if plan["hours"] else ""
    why = ""
    if plan["bound"]:
        bound = "arithmetic" if plan["bound"] == "arithmetic" else "memory traffic"
        why = f", limited by {bound} ({plan['other_share']:.0%} of the time is no matrix product)"
    return f"about {plan['tokens_per_second']:,.0f} tokens/s{hours}{why}"


def _data(data: Mapping[str, Any]) -> str:
    rows = f"{data['packed_rows']:,} packed rows" if data["packed_rows"] else "rows"
    return (
        f"{data['rows']:,} documents of {data['longest']:,} tokens at most: {data['tokens']:,} tokens, "
        f"{data['supervised_tokens'] / data['tokens']:.0%} of them with loss, {rows} {data['fill']:.0%} full; "
        f"{data['epochs']:.3g} × through them is {data['steps']:,} steps"
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}"
