"""Trains every method with every objective for two steps on the embedded demo, and keeps a line for each pair.

    python -m benchmarks.matrix [PATTERN …] [--out benchmarks/results/matrix.jsonl]

`hf-peft-recipes list --matrix` shows which pairs go together; this holds that table to what trains. A pair that has a
line is left out; `--again` trains it anew.
"""

import argparse
import json
import sys
import time
import traceback
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hf_peft_recipes.api import capability_table, get_recipe
from hf_peft_recipes.api.matrix import Pair
from hf_peft_recipes.bench.cell import SCHEMA_VERSION, circumstances
from hf_peft_recipes.errors import RecipeError
from hf_peft_recipes.measure.facts import commit_of
from hf_peft_recipes.spec.objectives import objective_facts

RESULTS = Path(__file__).parent / "results" / "matrix.jsonl"
SHORT: dict[str, Any] = {
    "max_steps": 2, "gradient_accumulation_steps": 1, "per_device_train_batch_size": 2, "evaluation.max_rows": 4,
    "data.validation_rows": 4, "eval_strategy": "no", "save_strategy": "no", "certify": "off",
}  # fmt: skip

ANSWERS: dict[str, Any] = {"per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 8}
"""For what learns from its own answers: so many that they hardly are all alike."""


def train_pair(pair: Pair) -> dict[str, Any]:
    """Return what became of two steps: `trained`, `refused` when it was resolved, or `failed`, and why.

    Args:
        pair: as `capability_table` returns it.
    """
    line: dict[str, Any] = {"name": pair.name, "method": pair.method, "objective": pair.objective}
    if pair.refused:
        return {**line, "status": "refused", "detail": pair.refused}
    begun = time.perf_counter()
    try:
        with TemporaryDirectory() as folder:
            rewarded = objective_facts(get_recipe(pair.name).resolved.objective).is_rewarded
            short = SHORT | (ANSWERS if rewarded else {})
            result = get_recipe(pair.name, **short).train(Path(folder) / "out", progress=False)
        losses = [point["loss"] for point in result.record["loss_curve"] if "loss" in point]
        return {**line, "status": "trained", "losses": losses, "seconds": round(time.perf_counter() - begun, 1)}
    except RecipeError as error:
        return {**line, "status": "failed", "detail": str(error)}
    except Exception as error:
        traceback.print_exc()
        return {**line, "status": "failed", "detail": f"{type(error).__name__}: {error}"}


def read_lines(path: Path) -> dict[str, dict[str, Any]]:
    """Return the lines of a result file by their names; the last one of a name counts."""
    if not path.is_file():
        return {}
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {line["name"]: line for line in lines}


def main() -> None:
    """Read the command line, train, and say what failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", default=["*"], help="shell patterns of names: 'qlora+*'")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--again", action="store_true", help="train pairs that have a line too")
    options = parser.parse_args()
    told = {"schema_version": SCHEMA_VERSION, **circumstances(), "commit": commit_of(Path(__file__).parent)}
    known = read_lines(options.out)
    wanted = [pair for pair in capability_table() if any(fnmatch(pair.name, each) for each in options.patterns)]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    failed = 0
    for pair in wanted:
        if pair.name in known and not options.again:
            continue
        line = train_pair(pair) | told
        failed += line["status"] == "failed"
        print(f"{pair.name}: {line['status']} {line.get('detail', '')}".rstrip(), file=sys.stderr, flush=True)
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
