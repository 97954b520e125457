"""What the metrics of a record say, in words and figures for a reader."""

from collections.abc import Iterable, Mapping
from typing import Any

from hf_peft_recipes.card.facts import reward_weights
from hf_peft_recipes.metric_facts import DEFINITIONS, FEW_LABELS, LOWER_IS_BETTER, ROWS_RIGHT, SHARES, TASK_METRICS

Row = tuple[str, ...]


def metric_rows(metrics: Mapping[str, Any]) -> list[Row]:
    """Return `(metric, before, after)` for every metric, each value with its interval."""
    intervals = metrics.get("intervals", {})

    def shown(side: str, name: str) -> str:
        value = metrics[side].get(name)
        if value is None:
            return "–"
        interval = intervals.get(side, {}).get(name)
        return _figure(name, value) + (f" ({_interval(name, interval)})" if interval else "")

    return [(name.replace("_", " "), shown("before", name), shown("after", name)) for name in _ordered(metrics)]


def definitions(record: Mapping[str, Any]) -> list[Row]:
    """Return `(metric, what it is)`."""
    names = _ordered(record["metrics"])
    texts = dict(DEFINITIONS)
    if record["data"]["format"] == "text":
        texts["loss"] = texts["loss"].replace("the tokens of the answers", "all tokens of the texts")
    texts |= {f"reward_{name}": f"the reward `{name}` alone, unweighted" for name in reward_weights(record)}
    return [(name.replace("_", " "), texts[name]) for name in names if name in texts]


def verdict(metrics: Mapping[str, Any]) -> str:
    """Return a sentence or two: what the table shows, and what it does not."""
    names = [name for name in (*TASK_METRICS, "loss") if name in metrics["before"] and name in metrics["after"]]
    changes = [_change(metrics, name) for name in names]
    # Where the task's metric is better for sure, the loss adds nothing.
    shown = changes[:1] if changes and changes[0][0] else changes
    return " ".join(text for _, text in shown)


def certainty(metrics: Mapping[str, Any]) -> str:
    """Return what an interval of no width hides: with every row right, some errors are still likely elsewhere."""
    rows, confidence = metrics.get("rows"), metrics.get("confidence")
    values = [metrics["after"][name] for name in ROWS_RIGHT if name in metrics["after"]]
    if not rows or not confidence or values not in ([0.0], [1.0]):
        return ""
    # Clopper and Pearson 1934, one-sided, for no case in n rows.
    bound = f"{1 - (1 - confidence) ** (1 / rows):.1%} ({confidence:.0%}, Clopper–Pearson)"
    hides = "which leaves the bootstrap no spread to show:"
    if values == [1.0]:
        return f"All {rows:,} answers were right, {hides} up to {bound} wrong ones are compatible with that."
    return f"None of the {rows:,} answers was right, {hides} up to {bound} right ones are compatible with that."


def _change(metrics: Mapping[str, Any], name: str) -> tuple[bool, str]:
    """Return whether the metric is better beyond its intervals, and a sentence on how it changed."""
    before, after = metrics["before"][name], metrics["after"][name]
    label = name.replace("_", " ").capitalize()
    if before == after:
        return False, f"{label} stayed at {_figure(name, after)}."
    better = after < before if name in LOWER_IS_BETTER else after > before
    went = f"{label} went from {_figure(name, before)} to {_figure(name, after)}"
    intervals = metrics.get("intervals", {})
    if found := intervals.get("difference", {}).get(name):
        low, high = found
        shown = f"difference is {_difference(name, metrics['difference'][name], found)}"
        if low <= 0 <= high:
            return False, f"{went}. The {shown}: these rows alone do not show one."
        return better, f"{went}, which is {'better' if better else '**worse**'}: the {shown}."
    sides = [intervals.get(side, {}).get(name) for side in ("before", "after")]
    if not all(sides):
        return False, f"{went}, which is {'better' if better else '**worse**'}."
    (low, high), (other_low, other_high) = sides
    if low <= other_high and other_low <= high:
        return False, f"{went}. The intervals overlap: these rows alone do not show a difference."
    return better, f"{went}, which is {'better' if better else '**worse**'}; the intervals are apart."


def class_rows(metrics: Mapping[str, Any]) -> list[Row]:
    """Return `(label, precision, recall, F1, cases)` of the trained model, F1 with its interval; empty for many labels.

    Args:
        metrics: as they stand in `result.json`.
    """
    told = metrics.get("classes", {}).get("after", {})
    if len(told) > FEW_LABELS:
        return []
    return [
        (
            label,
            _figure("precision", each["precision"]),
            _figure("recall", each["recall"]),
            f"{_figure('f1', each['f1'])} ({_interval('f1', each['intervals']['f1'])})",
            f"{each['support']:,}",
        )
        for label, each in told.items()
    ]


def confusion_rows(metrics: Mapping[str, Any]) -> list[Row]:
    """Return the answers to rows of each label, counted: the label, a number a label, and that of no label."""
    confusion = metrics.get("confusion", {"labels": []})
    if len(confusion["labels"]) > FEW_LABELS:
        return []
    pairs = zip(confusion["labels"], confusion.get("after", []), strict=True)
    return [(label, *(f"{number:,}" for number in counts)) for label, counts in pairs]


def curve(record: Mapping[str, Any]) -> str:
    """Return where the losses began and ended; empty without a curve."""
    said = []
    for key, what in (("loss", "training loss"), ("eval_loss", "validation loss")):
        points = [point for point in record["loss_curve"] if key in point]
        if len(points) > 1:
            first, last = points[0], points[-1]
            said.append(
                f"{what} {first[key]:.4g} at step {first['step']:,.0f}, {last[key]:.4g} at step {last['step']:,.0f}"
            )
    text = "; ".join(said)
    return text[:1].upper() + text[1:] + "." if text else ""


def _ordered(metrics: Mapping[str, Any]) -> list[str]:
    """Return the names of the metrics, those of the task first."""
    return sorted(metrics["after"], key=lambda name: name in LOWER_IS_BETTER)


def _figure(name: str, value: float) -> str:
    return f"{value:.1%}" if name in SHARES else f"{value:,.4g}"


def _difference(name: str, value: float, interval: Iterable[float]) -> str:
    low, high = interval
    if name in SHARES:
        return f"{100 * value:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"
    return f"{value:+,.3g} ({low:+,.3g} to {high:+,.3g})"


def _interval(name: str, interval: Iterable[float]) -> str:
    low, high = interval
    return f"{low * 100:.1f}–{high * 100:.1f}" if name in SHARES else f"{low:,.4g}–{high:,.4g}"
