"""Two models on the same rows, side by side: what a record says of metrics."""

from collections.abc import Mapping
from typing import Any

from hf_peft_recipes.evaluation.bootstrap import intervals
from hf_peft_recipes.evaluation.scores import Metrics


def compared(
    task: str, split: str, rows: int, before: Metrics | None, after: Metrics, section: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the metrics of a trained model beside its base's, as `result.json` has them.

    Args:
        task: one of `TASKS`.
        split: that the rows are of.
        rows: how many.
        before: of the base; None where it was not scored.
        after: of the trained model, on the same rows.
        section: the recipe's `evaluation` section.
    """
    confidence = float(section["confidence"])
    sides = {"before": before, "after": after}
    record: dict[str, Any] = {
        "task": task,
        "split": split,
        "rows": rows,
        **{side: metrics.values if metrics else {} for side, metrics in sides.items()},
        "intervals": {side: metrics.intervals if metrics else {} for side, metrics in sides.items()},
        "confidence": section["confidence"],
        "examples": {side: metrics.examples if metrics else [] for side, metrics in sides.items()},
    }
    if before:
        record["difference"], record["intervals"]["difference"] = difference(before, after, confidence)
    if after.classes:
        record["classes"] = {side: metrics.classes if metrics else {} for side, metrics in sides.items()}
    if after.confusion:
        counts = {side: metrics.confusion for side, metrics in sides.items() if metrics and metrics.confusion}
        record["confusion"] = {
            "labels": after.confusion["labels"],
            **{side: table["counts"] for side, table in counts.items()},
        }
    if after.signatures:
        record["signatures"] = after.signatures
    return record


def difference(before: Metrics, after: Metrics, confidence: float) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Return by how much each metric grew, and the interval of that: a paired bootstrap, each sample's rows in both.

    Args:
        before: of one model.
        after: of another, on the same rows, summarized under the same seed.
        confidence: a share of 1.
    """
    names = [name for name in after.values if name in before.values]
    draws = {name: after.draws[name] - before.draws[name] for name in names}
    return {name: after.values[name] - before.values[name] for name in names}, intervals(draws, confidence)
