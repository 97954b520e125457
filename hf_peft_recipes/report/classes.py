"""Tables of single labels: how well each is told, and what it is taken for."""

from collections.abc import Iterator, Mapping
from typing import Any

from hf_peft_recipes.metric_facts import FEW_LABELS


def class_tables(metrics: Mapping[str, Any], sides: tuple[str, str] = ("before", "after")) -> Iterator[Any]:
    """Yield rich tables: how well each label or kind is told, and on either side which labels were confused.

    Args:
        metrics: as it stands in `result.json`; nothing comes of a task without labels.
        sides: what the two are called.
    """
    if "classes" in metrics:
        yield _of_each(metrics, sides)
    confusion = metrics.get("confusion", {"labels": []})
    if 0 < len(confusion["labels"]) <= FEW_LABELS:
        for key, side in zip(("before", "after"), sides, strict=True):
            if key in confusion:
                yield _confused(confusion["labels"], confusion[key], side)


def _of_each(metrics: Mapping[str, Any], sides: tuple[str, str]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    before, after = metrics["classes"]["before"], metrics["classes"]["after"]
    table = Table(title="by label", title_justify="left")
    table.add_column("")
    for heading in ([f"F1, {sides[0]}"] if before else []) + [f"F1, {sides[1]}", "precision", "recall", "cases"]:
        table.add_column(heading, justify="right")
    for label, told in after.items():
        was = [f"{before[label]['f1']:.1%}"] if before else []
        low, high = told["intervals"]["f1"]
        shown = f"{told['f1']:.1%} [dim]({low:.1%} – {high:.1%})[/dim]"
        rest = (f"{told['precision']:.1%}", f"{told['recall']:.1%}", f"{told['support']:,}")
        table.add_row(escape(label), *was, shown, *rest)
    return table


def _confused(labels: list[str], counts: list[list[int]], side: str) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"{side}: reference (rows) by answer (columns)", title_justify="left")
    table.add_column("")
    for label in (*labels, "no label"):
        table.add_column(escape(label), justify="right")
    for at, (label, row) in enumerate(zip(labels, counts, strict=True)):
        cells = [f"[bold]{number:,}[/bold]" if column == at else f"{number:,}" for column, number in enumerate(row)]
        table.add_row(escape(label), *cells)
    return table
