"""What each method learns, forgets and costs on one task: every method of the registry, several seeds.

    python -m benchmarks.quality [--methods lora qlora …] [--seeds 3] [--steps 12] [--out FILE]
    python -m benchmarks.quality --model MODEL --dataset DATA --forgetting TEXT [flags of `train` …]

Without a model and data the embedded demo runs, stopped before every method answers all of it. A run is a `train` in a
fresh process, and a JSON line: metrics before and after with bootstrap intervals, peak memory, time, the size of what
was trained, and what was forgotten: the loss, before and after, on text like the one that the base was pretrained on.
The generator that wrote the embedded base's text writes more of it; for another base `--forgetting` names a data set.
What stands in the file already, of the same code, is not run again.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from hf_peft_recipes import registry
from hf_peft_recipes.api import RunResult, list_recipes, resolve_recipe
from hf_peft_recipes.bench.cell import circumstances
from hf_peft_recipes.bench.suite import Line, find_line, is_result, read_lines, require_quiet, with_line, write_lines
from hf_peft_recipes.cli.flags import parse_flags
from hf_peft_recipes.errors import RecipeError, UserError
from hf_peft_recipes.fresh_process import outcome, run_verb
from hf_peft_recipes.measure.facts import code_digest, commit_of
from hf_peft_recipes.results import RECIPE_FILE, RESULT_FILE
from hf_peft_recipes.spec import Override, kind_of

SCHEMA_VERSION = 1
OUT = Path(__file__).parent / "results" / "quality.jsonl"
EMBEDDED, EMBEDDED_STEPS = "embedded", 12
FORGETTING_ROWS = 200
_NOTHING_ELSE = {"eval_strategy": "no", "save_strategy": "no", "certify": "off", "report_to": "none"}
"""What is timed is training and scoring."""


@dataclass(frozen=True)
class Run:
    """One training of the benchmark."""

    method: str
    seed: int
    model: str = EMBEDDED
    """A Hub id, or the last part of a folder's path."""
    dataset: str = EMBEDDED
    steps: int | None = None
    """Optimizer steps; None for the recipe's own epochs."""
    forgetting: str | None = EMBEDDED
    """Whose loss is taken before and after; None for nothing."""
    flags: tuple[str, ...] = ()
    """Further words of `train`."""

    @property
    def name(self) -> str:
        """`lora-embedded-embedded-seed1`."""
        return f"{self.method}-{self.model}-{self.dataset}-seed{self.seed}"


@dataclass(frozen=True)
class Places:
    """Where the data of the runs lie on this machine; None for the embedded ones."""

    model: str | None
    dataset: str | None
    forgetting: str | None


def find_methods() -> list[str]:
    """Return the names of the shipped recipes that are methods and nothing else."""

    def open_source(name: str) -> tuple[str, str, str | Mapping[str, Any]]:
        source = registry.find(name)
        return source.name, source.origin, source.read()

    return [name for name in list_recipes() if kind_of(name, open_source) == "method"]


def write_pretraining_text(folder: Path, rows: int = FORGETTING_ROWS) -> None:
    """Write prose as the embedded base was pretrained on, which it has not seen, as the held-out rows of a data set.

    Args:
        folder: that gets `test.jsonl`, and a few rows in `train.jsonl`, which nobody reads.
        rows: held out.
    """
    from hf_peft_recipes.embedded.make import SEED, make_splits, review_texts
    from hf_peft_recipes.embedded.reviews import pretraining_documents

    # The tokenizer's text has this seed plus 1, the pretraining text plus 2.
    documents = pretraining_documents(Random(SEED + 3), review_texts(make_splits(SEED)))
    prose = dict.fromkeys(document for document in islice(documents, 10 * rows) if isinstance(document, str))
    texts = list(prose)[: rows + 8]
    folder.mkdir(parents=True, exist_ok=True)
    for file, part in (("test.jsonl", texts[:rows]), ("train.jsonl", texts[rows:])):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in part)
        (folder / file).write_text(lines, encoding="utf-8")


def measure(run: Run, places: Places, scratch: Path) -> Line:
    """Return the line of a run: what it is, what it learned, forgot and took, on what, and how it ended.

    Args:
        run: to make.
        places: of its data.
        scratch: below which it is written.
    """
    named = {"model": places.model, "dataset": places.dataset, "max_steps": run.steps, "seed": run.seed}
    options = {key: str(value) for key, value in (named | _NOTHING_ELSE).items() if value is not None}
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        out = Path(folder) / "out"
        words = [word for key, value in options.items() for word in (f"--{key}", value)]
        finished = run_verb("train", run.method, *words, *run.flags, "--output_dir", str(out))
        record = RunResult.read(out).record if (out / RESULT_FILE).is_file() else None
        ended = outcome(finished, record)
        found = _figures(out, record, places.forgetting) if record and ended["status"] == "done" else {}
    cell = {**asdict(run), "flags": list(run.flags)}
    return {"schema_version": SCHEMA_VERSION, "name": run.name, "cell": cell, **ended, **found, **circumstances()}


def measure_all(runs: Sequence[Run], places: Places, path: Path, scratch: Path, keep: bool = False) -> list[Line]:
    """Return the lines of the runs, making those that the file has no result of.

    Args:
        runs: to make, in this order.
        places: of their data.
        path: of the result file.
        scratch: below which runs are written.
        keep: take results of other code too.

    Raises:
        UserError: a file that is none of ours.
    """
    lines, commit, found = read_lines(path), commit_of(Path(__file__).parent), []
    for run in runs:
        line = find_line(lines, run)
        fresh = line is None or not is_result(line, keep)
        if line is None or fresh:
            line = measure(run, places, scratch) | {"commit": commit, "code": code_digest()}
            lines = with_line(lines, line)
            write_lines(path, lines)
        print(_told(line, fresh), file=sys.stderr, flush=True)
        found.append(line)
    return found


def _figures(folder: Path, record: Mapping[str, Any], forgetting: str | None) -> Line:
    """Return what a finished run's record says, and its loss on the other text, scored here."""
    weights = "adapter_model*.safetensors" if (folder / "adapter_config.json").is_file() else "*.safetensors"
    return {
        "metrics": {key: value for key, value in record["metrics"].items() if key != "examples"},
        "forgetting": _score_text(folder, record, forgetting) if forgetting else None,
        "trained_bytes": sum(path.stat().st_size for path in folder.glob(weights)),
        "parameters": record["parameters"],
        "quantized": bool(resolve_recipe(str(folder / RECIPE_FILE), [], exact=True).resolved.section("quantization")),
        "measured": {key: value for key, value in record["measured"].items() if key != "series"},
        "losses": [[point["step"], point["loss"]] for point in record["loss_curve"] if "loss" in point],
    }


def _score_text(folder: Path, record: Mapping[str, Any], dataset: str) -> dict[str, Any]:
    """Return the loss on a text's held-out rows, of the base as the run used it and of what was trained."""
    given = {"data.dataset": dataset, "data.columns": None, "evaluation.task": "text"}
    overrides = [Override(key, value, "forgetting") for key, value in given.items()]
    recipe = resolve_recipe(str(folder / RECIPE_FILE), overrides, exact=True)
    from hf_peft_recipes.upstream_noise import quiet

    with quiet():
        from hf_peft_recipes import trained

        scored = trained.evaluate(trained.load(folder, recipe.resolved, record), record)
    return {
        "before": scored["before"]["loss"],
        "after": scored["after"]["loss"],
        "intervals": {side: scored["intervals"][side]["loss"] for side in ("before", "after")},
        "rows": scored["rows"],
    }


def _told(line: Line, fresh: bool) -> str:
    text = f"{line['name']}: {line['status']}"
    if line["status"] == "done":
        before, after = line["metrics"]["before"], line["metrics"]["after"]
        text += f", loss {before['loss']:.3f} to {after['loss']:.3f}"
        if "accuracy" in after:
            text += f", accuracy {before['accuracy']:.1%} to {after['accuracy']:.1%}"
        if lost := line["forgetting"]:
            text += f", other text {lost['before']:.3f} to {lost['after']:.3f}"
    elif line.get("error"):
        text += f" ({line['error']})"
    return text if fresh else f"{text} (measured before, at {line['commit']})"


def _parse(words: list[str] | None) -> tuple[argparse.Namespace, tuple[str, ...]]:
    parser = argparse.ArgumentParser(
        "benchmarks.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--methods", nargs="+", help="all that ship by default")
    parser.add_argument("--seeds", type=int, default=3, help="so many, from 1")
    parser.add_argument(
        "--steps", type=int, help=f"of the optimizer, a run; default: {EMBEDDED_STEPS}, or a dataset's own epochs"
    )
    parser.add_argument("--model", help="a Hub id or a folder; embedded by default")
    parser.add_argument("--dataset", help="a Hub id, a file or a folder; embedded by default")
    parser.add_argument("--forgetting", help="a data set of text whose held-out rows are scored before and after")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--keep", action="store_true", help="take results of other code too")
    parser.add_argument("--busy", action="store_true", help="measure though others use the GPU")
    options, flags = parser.parse_known_args(words)
    # A word that is no flag is told now, and not by every run.
    parse_flags(flags)
    return options, tuple(flags)


def benchmark(words: list[str] | None = None) -> list[Line]:
    """Return the lines of the runs that the command line asks for.

    Raises:
        UserError: a mistake in what was asked, or a busy GPU.
    """
    options, flags = _parse(words)
    known = find_methods()
    methods = options.methods or known
    if wrong := [name for name in methods if name not in known]:
        raise UserError(f"--methods {wrong[0]}: no method that ships (known: {', '.join(known)})")
    if options.seeds < 1:
        raise UserError(f"--seeds {options.seeds}: at least 1 is needed")
    if options.dataset is None and options.model is not None:
        raise UserError("--model needs --dataset too")
    if not options.busy:
        require_quiet("; wait until it is free, or measure all the same with --busy")
    with tempfile.TemporaryDirectory() as folder:
        scratch, forgetting, text = Path(folder), options.forgetting, options.forgetting
        if forgetting is None and options.model is None:
            text, forgetting = EMBEDDED, str(scratch / "text")
            write_pretraining_text(scratch / "text")
        steps = EMBEDDED_STEPS if options.steps is None and options.dataset is None else options.steps
        names = _name(options.model), _name(options.dataset)
        runs = [
            Run(method, seed, *names, steps, None if text is None else _name(text), flags)
            for seed in range(1, options.seeds + 1)
            for method in methods
        ]
        places = Places(options.model, options.dataset, forgetting)
        return measure_all(runs, places, options.out, scratch, options.keep)


def _name(given: str | None) -> str:
    """Return what a model or data set is called in results, where no path of this machine belongs."""
    if given is None:
        return EMBEDDED
    return Path(given).expanduser().resolve().name if Path(given).expanduser().exists() else given


def main() -> None:
    """Measure what is missing; end with 1 where a run failed."""
    try:
        lines = benchmark()
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    sys.exit(any(line["status"] == "failed" for line in lines))


if __name__ == "__main__":
    main()
