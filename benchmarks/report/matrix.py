"""Which method trained with which objective: `matrix.jsonl`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from benchmarks.report.lines import read_results
from benchmarks.report.pieces import NOTHING, Block, Section, Table, wrap

_TEXT = (
    "Two steps of every pair on the embedded demo, evaluated before and after. A dash is a pair that is refused when it"
    " is resolved; `hf-peft-recipes list --matrix` says why."
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
    last = {line["name"]: line for line in lines}
    objectives = list(dict.fromkeys(line["objective"] for line in last.values()))
    words = {"trained": "yes", "refused": NOTHING, "failed": "failed"}
    rows = [
        [method, *(words[last[f"{method}+{objective}"]["status"]] for objective in objectives)]
        for method in dict.fromkeys(line["method"] for line in last.values())
    ]
    counted = Counter(line["status"] for line in last.values())
    told = ", ".join(f"{counted[status]} {status}" for status in words if counted[status])
    block = Block(provenance, f"Of {len(last)} pairs of a method with an objective: {told}.", None)
    return Section(
        "Every method with every objective", wrap(_TEXT), Table(provenance, ("method", *objectives), rows), None, block
    )
