"""Every change of the disk that a short run makes, failed in turn and in every way; a table of what became of the runs.

    python -m tests.faults [--number N] [--seed 0] [--out benchmarks/results/faults.json]

All of them take about an hour of processor time; `--number` draws so many of each phase. Ends with 1 where a run was
lost, a folder was in a state that is neither the old one nor the new, or a process was left.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hf_peft_recipes.bench.cell import SCHEMA_VERSION, circumstances
from hf_peft_recipes.measure.facts import commit_of
from hf_peft_recipes.results import write_text

from .sweep import ALL_KINDS, PHASES
from .zygote import ROOT, Zygote

OUT = ROOT / "benchmarks" / "results" / "faults.json"
COUNTED = ("injected", "went on", "stopped", "died", "wrong", "lost", "orphans")


def counts(outcomes: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each kind of fault in each phase: how many, how the runs ended, and what was not fine."""
    found: dict[tuple[str, str], Counter[str]] = {}
    for one in outcomes:
        row = found.setdefault((one["fault"]["phase"], one["fault"]["kind"]), Counter())
        row.update(["injected", one["end"], *(name for name in ("wrong", "lost") if one[name])])
        row["orphans"] += one["orphans"]
    order = sorted(found, key=lambda key: (PHASES.index(key[0]), ALL_KINDS.index(key[1])))
    return [
        {"phase": phase, "kind": kind, **{name: found[phase, kind][name] for name in COUNTED}} for phase, kind in order
    ]


def main() -> None:
    """Inject, print the table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, help="so many of each phase, drawn; by default all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--progress", type=Path, help="a file that gets a line a hundred faults")
    options = parser.parse_args()
    started, commit = time.perf_counter(), commit_of(ROOT)
    with tempfile.TemporaryDirectory(prefix="sweep-") as scratch, Zygote() as zygote:
        done = zygote.do(
            "sweep", scratch=Path(scratch).resolve(), number=options.number, seed=options.seed,
            progress=options.progress,
        )  # fmt: skip
    if done["code"]:
        print(done["said"], file=sys.stderr)
        sys.exit(1)
    found = done["value"]
    rows, bad = (
        counts(found["outcomes"]),
        [one for one in found["outcomes"] if one["wrong"] or one["lost"] or one["orphans"]],
    )
    record = {
        "schema_version": SCHEMA_VERSION, "drawn": options.number, "seed": options.seed, "counts": rows,
        "changes": found["operations"], "states": found["states"], "not_fine": [one["told"] for one in bad],
        "seconds": time.perf_counter() - started, **circumstances(), "commit": commit,
    }  # fmt: skip
    write_text(options.out, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    for row in [dict(zip(("phase", "kind", *COUNTED), ("phase", "kind", *COUNTED), strict=True)), *rows]:
        print(f"{row['phase']:<14}{row['kind']:<24}" + "".join(f"{row[name]:>10}" for name in COUNTED))
    for one in bad:
        print(one["told"], file=sys.stderr)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
