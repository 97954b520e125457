"""Whether a model learns from what is said of its answers, and more than from its own right ones: several seeds.

    python -m benchmarks.feedback [--seeds 3] [--out FILE] [flags of `train` for the rounds …]

The task is `benchmarks.lesson`: things, each with one quality, of which the model is told one half. A seed is two runs,
each a `train` in a fresh process: the start (the embedded model, told of that half and shown how to take up what is
said of an answer), then `ilf` on it, whose `feedback.compare` spends at least as many generated tokens on rejection
sampling, and as many trained ones on plain SFT, from the same start. The teacher says what is true where an answer is
wrong; rejection sampling is told right or wrong alone. Plain SFT is given the references of all prompts, which neither
of the others sees: it is what could be reached, not a rival. A seed is a JSON line; what stands in the file already, of
the same code, is not run again.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.lesson.book import make_book
from benchmarks.lesson.rows import REFINE_TEMPLATE, Lesson, Row, make_lesson
from hf_peft_recipes.api import RunResult
from hf_peft_recipes.bench.cell import circumstances
from hf_peft_recipes.bench.suite import Line, find_line, is_result, read_lines, require_quiet, with_line, write_lines
from hf_peft_recipes.cli.flags import parse_flags
from hf_peft_recipes.errors import RecipeError, UserError
from hf_peft_recipes.fresh_process import outcome, run_verb
from hf_peft_recipes.measure.facts import code_digest, commit_of
from hf_peft_recipes.results import RESULT_FILE

SCHEMA_VERSION = 1
OUT = Path(__file__).parent / "results" / "feedback.jsonl"
METRIC = "exact_match"
SIZES = {"told": 500, "demonstrations": 3500, "asked": 256, "held_out": 200}
_EITHER = {
    "evaluation.task": METRIC, "max_length": 256, "gradient_accumulation_steps": 2, "eval_strategy": "no",
    "save_strategy": "no", "certify": "off", "report_to": "none",
}  # fmt: skip
START = {"learning_rate": 2e-3, "num_train_epochs": 3}
"""Copying a word that was said is new to the embedded model: it takes large steps, and some hundred of them."""
ROUNDS = {
    "learning_rate": 5e-4, "num_train_epochs": 5, "feedback.rounds": 3, "feedback.prompts": 64,
    "feedback.refinements": 1, "feedback.source": "benchmarks.lesson.teacher:teach",
    "feedback.refine_template": REFINE_TEMPLATE, "feedback.regression": "null", "feedback.compare": "true",
}  # fmt: skip
"""So few prompts a round that not all can be learned in the first."""


@dataclass(frozen=True)
class Run:
    """One seed of the benchmark."""

    seed: int
    rows: str
    """The start of a SHA-256 over the rows: another task is another result."""
    sizes: Mapping[str, int] = field(default_factory=lambda: dict(SIZES))
    start: tuple[str, ...] = ()
    """Words of `train full` for the start."""
    rounds: tuple[str, ...] = ()
    """Words of `train full+ilf`."""

    @property
    def name(self) -> str:
        """`seed1`."""
        return f"seed{self.seed}"


def make_run(seed: int, sizes: Mapping[str, int] = SIZES, flags: Sequence[str] = ()) -> Run:
    """Return the run of a seed.

    Args:
        seed: of what is true, of the rows, of training and of sampling.
        sizes: how many rows of each kind.
        flags: further words of `train` for the rounds.
    """
    told = json.dumps(asdict(_lesson(seed, sizes)))
    start = _words(START | _EITHER | {"seed": seed})
    rounds = (*_words(ROUNDS | _EITHER | {"seed": seed}), *flags)
    return Run(seed, hashlib.sha256(told.encode()).hexdigest()[:12], dict(sizes), start, rounds)


def measure(run: Run, scratch: Path) -> Line:
    """Return the line of a seed: how right the model is before, at the start, and after each round; and how it ended.

    Args:
        run: to make.
        scratch: below which it is written.
    """
    line: Line = {"schema_version": SCHEMA_VERSION, "name": run.name, "cell": json.loads(json.dumps(asdict(run)))}
    lesson = _lesson(run.seed, run.sizes)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        start, rounds = Path(folder) / "start", Path(folder) / "rounds"
        _write(Path(folder) / "before", lesson.start, lesson.held_out)
        _write(Path(folder) / "lesson", lesson.asked, lesson.held_out)
        ended, began = _train("full", Path(folder) / "before", start, run.start)
        if began is not None and ended["status"] == "done":
            words = ("--model", str(start), *run.rounds)
            ended, record = _train("full+ilf", Path(folder) / "lesson", rounds, words)
            if record is not None and ended["status"] == "done":
                line |= figures(began, record)
    return line | ended | circumstances()


def figures(start: Mapping[str, Any], rounds: Mapping[str, Any]) -> Line:
    """Return what the records of a seed's two runs say.

    Args:
        start: the record of the run that made the start.
        rounds: that of the rounds.
    """
    feedback = rounds["feedback"]
    comparison = feedback["comparison"]
    began = feedback["start"]
    return {
        "base": start["metrics"]["before"][METRIC],
        "start": {"value": began["metrics"][METRIC], "interval": began["intervals"][METRIC]},
        "arms": {
            "ilf": [_round(account) for account in feedback["rounds"]],
            "rft": [_round(account) for account in comparison["rft"]["rounds"]],
        },
        "sft": {
            "value": comparison["sft"]["metrics"][METRIC],
            "interval": comparison["sft"]["intervals"][METRIC],
            "trained_tokens": comparison["sft"]["trained_tokens"],
        },
        "seconds": {"start": start["measured"]["total_seconds"], "rounds": rounds["measured"]["total_seconds"]},
    }


_COUNTED = ("samples", "accepted", "refinements", "refinements_accepted", "generated_tokens", "kept")


def _round(account: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a round came to; its value is None where nothing was trained."""
    metrics, intervals = account.get("metrics"), account.get("intervals")
    trained = account.get("trained") or {}
    return {
        "value": metrics[METRIC] if metrics else None,
        "interval": intervals[METRIC] if intervals else None,
        "trained_tokens": trained.get("tokens"),
        **{key: account[key] for key in _COUNTED},
    }


def standing(start: float, rounds: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return how right the model is that is kept: at the start, and after each round.

    Args:
        start: the start's value.
        rounds: as a line has them.
    """
    found = [start]
    for one in rounds:
        found.append(one["value"] if one["kept"] else found[-1])
    return found


def measure_all(runs: Sequence[Run], path: Path, scratch: Path, keep: bool = False) -> list[Line]:
    """Return the lines of the runs, making those that the file has no result of.

    Args:
        runs: to make, in this order.
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
            line = measure(run, scratch) | {"commit": commit, "code": code_digest()}
            lines = with_line(lines, line)
            write_lines(path, lines)
        print(_told(line, fresh), file=sys.stderr, flush=True)
        found.append(line)
    return found


def _lesson(seed: int, sizes: Mapping[str, int]) -> Lesson:
    return make_lesson(make_book(seed), seed, **sizes)


def _write(folder: Path, train: Sequence[Row], test: Sequence[Row]) -> None:
    folder.mkdir()
    for name, rows in (("train", train), ("test", test)):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def _words(options: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(word for key, value in options.items() for word in (f"--{key}", str(value)))


def _train(
    recipe: str, dataset: Path, out: Path, words: Sequence[str]
) -> tuple[dict[str, Any], Mapping[str, Any] | None]:
    """Return how a run ended, and its record, where it left one."""
    finished = run_verb("train", recipe, "--dataset", str(dataset), *words, "--output_dir", str(out))
    record = RunResult.read(out).record if (out / RESULT_FILE).is_file() else None
    return outcome(finished, record), record


def _told(line: Line, fresh: bool) -> str:
    text = f"{line['name']}: {line['status']}"
    if line["status"] == "done":
        start = line["start"]["value"]
        text += f", start {start:.1%}"
        for name, rounds in line["arms"].items():
            text += f", {name} " + " ".join(f"{value:.1%}" for value in standing(start, rounds)[1:])
        text += f", sft on the references {line['sft']['value']:.1%}"
    elif line.get("error"):
        text += f" ({line['error']})"
    return text if fresh else f"{text} (measured before, at {line['commit']})"


def benchmark(words: list[str] | None = None) -> list[Line]:
    """Return the lines of the seeds that the command line asks for.

    Raises:
        UserError: a mistake in what was asked, or a busy GPU.
    """
    parser = argparse.ArgumentParser(
        "benchmarks.feedback", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=3, help="so many, from 1")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--keep", action="store_true", help="take results of other code too")
    parser.add_argument("--busy", action="store_true", help="measure though others use the GPU")
    for name, size in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=size, help="rows of that kind, see benchmarks.lesson.rows")
    options, flags = parser.parse_known_args(words)
    # A word that is no flag is told now, and not by every run.
    parse_flags(flags)
    if options.seeds < 1:
        raise UserError(f"--seeds {options.seeds}: at least 1 is needed")
    if not options.busy:
        require_quiet("; wait until it is free, or measure all the same with --busy")
    sizes = {name: getattr(options, name) for name in SIZES}
    runs = [make_run(seed, sizes, flags) for seed in range(1, options.seeds + 1)]
    with tempfile.TemporaryDirectory() as scratch:
        return measure_all(runs, options.out, Path(scratch), options.keep)


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
