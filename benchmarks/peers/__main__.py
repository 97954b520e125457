"""Our recipes beside other ways to the same training: checked to be the same work, then timed in turns.

    python -m benchmarks.peers [--recipe lora|qlora] [--contenders ours trl_best …] [--turns 2] [--steps 3]

Every run is a fresh process. First, from the same adapter, each contender takes a few steps, and tokens, labels, losses
and gradient norms are compared: a difference ends the benchmark with code 1. Then they take turns (A B C, B C A …), as
machines drift; what counts is the ratio within a turn. Tokens are counted in the batches themselves, padding left out,
seconds and memory in the process, the steps of warm-up left out. A run that stands in the file already is not repeated.
"""

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.peers import ceiling, process
from benchmarks.peers.contenders import CONTENDERS, Contender
from benchmarks.peers.job import LORA, Job
from benchmarks.peers.matching import compare, table
from benchmarks.peers.ratios import ratios, spread
from benchmarks.peers.record import Record
from benchmarks.peers.work import ADAPTER, MODEL, ROWS, Shape
from hf_peft_recipes import get_recipe
from hf_peft_recipes.device import detect_device
from hf_peft_recipes.errors import UserError, did_you_mean

CHECKED_STEPS = 3
CHECKS: dict[tuple[bool, bool], tuple[str, dict[str, Any]]] = {
    (True, True): ("check", {}),
    (False, True): ("check of single rows", {"packed": False}),
    (False, False): ("check of one row a step", {"packed": False, "accumulation": 1}),
}
"""Whether a contender packs and accumulates as ours does, to the name of its check and what that changes of the job."""


def chosen(recipe: str, names: list[str] | None) -> dict[str, Contender]:
    """Return the contenders on that recipe, ours first.

    Raises:
        UserError: a name that is not in the table, or of another recipe.
    """
    fitting = {name: one for name, one in CONTENDERS.items() if one.recipe == recipe}
    for name in names or []:
        if name not in fitting:
            raise UserError(
                f"no contender {name!r} on {recipe}{did_you_mean(name, fitting)} (known: {', '.join(fitting)})"
            )
    reference = next(iter(fitting))
    wanted = [name for name, one in fitting.items() if (name in names if names else one.default)]
    return {name: fitting[name] for name in dict.fromkeys([reference, *wanted])}


def check(record: Record, contenders: dict[str, Contender], jobs: dict[str, Job]) -> dict[str, Any]:
    """Return the verdict on each contender that must do the same work as the first, running what was not run yet."""
    reference = next(iter(contenders))
    verdicts = dict[str, dict[str, Any]]()
    for (packs_alike, accumulates_alike), (title, changes) in CHECKS.items():
        names = [
            name
            for name, one in contenders.items()
            if not one.unmatched and (one.packs_alike, one.accumulates_alike) == (packs_alike, accumulates_alike)
        ]
        names = list(dict.fromkeys([reference, *names]))
        if len(names) == 1:
            continue
        cells = {
            name: _run(record, f"{title}/{name}", contenders[name], replace(jobs[name], **changes)) for name in names
        }
        done = {name: cell for name, cell in cells.items() if cell["status"] == "done"}
        if reference not in done:
            return {"mismatches": [f"{reference}: {cells[reference]['reason']}"]}
        found = {name: compare(done[reference], cell) for name, cell in done.items() if name != reference}
        print(f"{title}:\n{table(done, found)}", flush=True)
        verdicts |= found
    return {
        "steps": CHECKED_STEPS,
        "verdicts": verdicts,
        "mismatches": [f"{name}: {told}" for name, one in verdicts.items() for told in one["mismatches"]],
        "not_checked": {name: one.unmatched for name, one in contenders.items() if one.unmatched},
    }


def time_turn(
    record: Record, contenders: dict[str, Contender], jobs: dict[str, Job], turn: int
) -> dict[str, dict[str, Any]]:
    """Return the records of one turn, of those that ran, in the table's order; run what was not run yet."""
    if record.cell(f"turn {turn}/rate") is None:
        rate = json.loads(process.run_module("ceiling"))
        record.keep(f"turn {turn}/rate", {"status": "done", **(rate or {})})
    names = list(contenders)
    first = (turn - 1) % len(names)
    cells = {
        name: _run(record, f"turn {turn}/{name}", contenders[name], jobs[name])
        for name in names[first:] + names[:first]
    }
    return {name: cells[name] for name in names if cells[name]["status"] == "done"}


def _run(record: Record, cell: str, contender: Contender, job: Job) -> dict[str, Any]:
    if found := record.cell(cell):
        return found
    made = process.run(contender, job)
    record.keep(cell, made)
    rate = f"{made['tokens_per_second']:.0f} tokens/s" if made["status"] == "done" else made["reason"]
    print(f"{cell}: {made['status']}, {rate}", flush=True)
    return made


def summarize(record: Record, model: Path, recipe: str, turns: list[dict[str, dict[str, Any]]]) -> None:
    """Write what the turns come to: ratios, and shares of what the products alone would allow."""
    content, shares = record.content, dict[str, list[dict[str, float]]]()
    for number, turn in enumerate(turns, 1):
        rate = content["cells"][f"turn {number}/rate"].get("product_flops")
        for name, cell in turn.items():
            if rate and cell.get("squared_lengths"):
                shares.setdefault(name, []).append(ceiling.share(model, recipe, cell, rate))
    content["ratios"] = ratios(turns)
    content["ceiling"] = {
        name: {key: spread([one[key] for one in found]) for key in found[0]} for name, found in shares.items()
    }
    record.write()


def benchmark(record: Record, contenders: dict[str, Contender], options: argparse.Namespace) -> int:
    """Run everything and fill the record; return the exit code."""
    from hf_peft_recipes.measure.facts import host_facts, installed_versions

    dtype = str(get_recipe(options.recipe).resolved.value("model.dtype"))
    shape = Shape(options.hidden, options.layers, options.vocabulary, options.rows)
    record.content |= {
        "what": "ratios of the first contender's figure to the peer's, within a turn; above 1 is more",
        "contenders": {name: asdict(one) for name, one in contenders.items()},
        "hardware": {
            **host_facts(),
            "device": detect_device().describe(),
            "threads": os.environ.get("OMP_NUM_THREADS"),
        },
        "versions": installed_versions(),
        "dtype": dtype,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        process.run_module("work", scratch, json.dumps(asdict(shape)))

        def job(contender: Contender, steps: int, accumulation: int, **others: Any) -> Job:
            return Job(
                options.recipe, str(folder / MODEL), str(folder / ROWS), steps, matched=not contender.unmatched,
                settings=contender.settings, accumulation=accumulation, length=options.length, dtype=dtype, **others,
            )  # fmt: skip

        checked = {
            name: job(one, CHECKED_STEPS, options.check_accumulation, warmup=1, adapter=str(folder / ADAPTER))
            for name, one in contenders.items()
        }
        record.content["check"] = check(record, contenders, checked)
        record.write()
        if record.content["check"]["mismatches"]:
            print("error: not the same work, so nothing is timed", file=sys.stderr)
            return 1
        timed = {
            name: job(one, options.steps, options.accumulation, warmup=options.warmup)
            for name, one in contenders.items()
        }
        turns = []
        for turn in range(1, options.turns + 1):
            turns.append(time_turn(record, contenders, timed, turn))
            summarize(record, folder / MODEL, options.recipe, turns)
    print(json.dumps({"ratios": record.content["ratios"], "ceiling": record.content["ceiling"]}, indent=2))
    failed = [name for name, cell in record.content["cells"].items() if cell["status"] == "failed"]
    if failed:
        print(f"error: failed: {', '.join(failed)}; the reasons are in {record.path}", file=sys.stderr)
    return 1 if failed else 0


def _options(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shape = Shape()
    parser.add_argument("--recipe", choices=("lora", "qlora"), default="lora")
    parser.add_argument("--contenders", nargs="+", metavar="NAME", help=f"of {', '.join(CONTENDERS)}")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3, help="of the optimizer, a run")
    parser.add_argument("--warmup", type=int, default=1, help="steps at the start that are not timed")
    parser.add_argument("--accumulation", type=int, default=8, help="packed rows a step")
    parser.add_argument("--check_accumulation", type=int, default=2, help="packed rows a step of the check")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a packed row")
    parser.add_argument("--layers", type=int, default=shape.layers)
    parser.add_argument("--hidden", type=int, default=shape.hidden)
    parser.add_argument("--vocabulary", type=int, default=shape.vocabulary)
    parser.add_argument("--rows", type=int, default=shape.rows)
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/peers_RECIPE.json")
    parser.add_argument("--overwrite", action="store_true", help="give up what the file holds")
    return parser.parse_args(words)


_NO_SETTING = ("out", "overwrite", "contenders", "turns")
"""More contenders and turns may join what the file holds."""


def main(words: list[str] | None = None) -> int:
    """Run the benchmark; return the exit code.

    Args:
        words: of the command line; None takes the process's own.
    """
    options = _options(words)
    out = options.out or Path(__file__).parents[1] / "results" / f"peers_{options.recipe}.json"
    settings = {key: value for key, value in vars(options).items() if key not in _NO_SETTING}
    try:
        contenders = chosen(options.recipe, options.contenders)
        record = Record(out, {**settings, "lora": LORA}, options.overwrite)
        return benchmark(record, contenders, options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
