"""The proof of resume: a run that is killed and resumed, held step by step against the same run undisturbed."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_peft_recipes.api import RunResult, resolve_recipe
from hf_peft_recipes.bench.receipts import Check, embedded_options
from hf_peft_recipes.errors import ReceiptError, UserError
from hf_peft_recipes.fresh_process import Finished, Started, last_words, start_verb
from hf_peft_recipes.spec import Override
from hf_peft_recipes.trajectory import Point, read_trajectory

STEPS = 8
FEWEST = 4
"""Steps: a checkpoint, a step after it that is lost, and steps to go on with."""
SIGNALS = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM}
OPTIONS: dict[str, Any] = {
    "seed": 42, "logging_steps": 1, "eval_strategy": "steps", "save_strategy": "steps", "save_total_limit": 2,
    "data.validation_rows": 8, "evaluation.max_rows": 4, "report_to": "none", "certify": "off",
}  # fmt: skip
"""Of the runs that are compared. The schedule is the recipe's own, which must come back too."""

LOSS_TOLERANCE, GRADIENT_TOLERANCE = 0.002, 0.05
"""Relative, where another number of processes goes on. Rows are added up in another order then; where products are in
bfloat16, each is rounded to 8 bits, 0.4 %, and a mean over hundreds of tokens to a part of that."""

_FIELDS: tuple[tuple[str, str, float | None], ...] = (
    ("what each step was fed", "batch", None),
    ("loss", "loss", LOSS_TOLERANCE),
    ("gradient norm", "grad_norm", GRADIENT_TOLERANCE),
    ("learning rate", "learning_rate", None),
)
"""Name of a check, the point's field, and how near is near; None where it is the same on any number of processes."""

_POLL_SECONDS = 0.005
_PATIENCE_SECONDS = 120
"""That a process may take to end once it was told to."""


@dataclass(frozen=True)
class Resumption:
    """What became of a run that was killed and resumed, beside the undisturbed one."""

    name: str
    steps: int
    signal: str
    reached: int
    """The last step that was done before the process was gone."""
    resumed_from: int
    """The step of the checkpoint that training went on from."""
    processes: int
    """That went on."""
    checks: list[Check]
    first_difference: int | None
    """The first step that is not what it was; None where all are."""

    @property
    def holds(self) -> bool:
        """Whether every check does."""
        return all(check.ok for check in self.checks)

    def shown(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {**asdict(self), "holds": self.holds}


def verify_resume(
    name: str,
    flags: Sequence[Override] = (),
    words: Sequence[str] = (),
    steps: int = STEPS,
    at: int | None = None,
    signal_name: str = "KILL",
    processes: int = 1,
) -> Resumption:
    """Return how a run of a recipe's embedded demo that is killed and resumed differs from the undisturbed one.

    Three processes run in turn: to the end, until it is killed, and on from there.

    Args:
        name: of the recipe.
        flags: fields that are set beside the recipe's.
        words: the same as words of the command line.
        steps: optimizer steps of the run.
        at: the step after which it is killed; None for one beyond the half, when there is a checkpoint.
        signal_name: `KILL` or `TERM`.
        processes: that go on; one does the undisturbed run.

    Raises:
        UserError: an unknown recipe or field, or a step or signal that is not there.
        ReceiptError: a run failed.
    """
    if resolve_recipe(name, list(flags)).resolved.is_in_rounds:
        raise UserError(f"{name} learns in rounds, each of which is done again where it was killed; nothing is resumed")
    if steps < FEWEST:
        raise UserError(f"--steps {steps}: {FEWEST} at least, or there is nothing to go on with")
    killed_at = steps // 2 + 1 if at is None else at
    every = max(1, min(steps // 4, killed_at - 1))
    if not 2 <= killed_at < steps:
        raise UserError(f"--at {killed_at}: a step between 2 and {steps - 1} is wanted, after a checkpoint")
    if signal_name not in SIGNALS:
        raise UserError(f"--signal {signal_name}: {' or '.join(SIGNALS)} is known")
    options = {**OPTIONS, "max_steps": steps, "save_steps": every, "eval_steps": every, **embedded_options(name)}
    with tempfile.TemporaryDirectory(prefix="verify-resume-") as scratch:
        whole, cut = _Run(Path(scratch), "whole"), _Run(Path(scratch), "cut")
        train = ["train", name, *words, *(word for key, value in options.items() for word in (f"--{key}", str(value)))]
        whole.start(train).finish(name)
        cut.start(train).kill(name, killed_at, SIGNALS[signal_name])
        reached = cut.points[-1].step
        several = ["--num_processes", str(processes)] if processes > 1 else []
        before = len(cut.points)
        cut.start([*train, "--resume", *several]).finish(name)
        resumed = cut.points[before:]
        checks, first = compare(whole.points, cut.points, exact=processes == 1)
        checks.append(_held_out(whole.record, cut.record, processes == 1))
        if processes == 1:
            checks.append(_weights(whole.folder, cut.folder))
    resumed_from = (resumed[0].step if resumed else steps + 1) - 1
    return Resumption(name, steps, signal_name, reached, resumed_from, processes, checks, first)


def compare(whole: Sequence[Point], cut: Sequence[Point], exact: bool = True) -> tuple[list[Check], int | None]:
    """Return how the steps of a run that was cut off and resumed differ from those of the undisturbed one.

    Args:
        whole: each step once.
        cut: in the order in which they were done; some are done twice.
        exact: whether figures must be the same to the last bit; else they must be near.

    Returns:
        What was compared, and the first step that differs in any of it; None where none does.
    """
    of_step = {point.step: point for point in whole}
    pairs = [(of_step[point.step], point) for point in cut if point.step in of_step]
    done, wanted = sorted({point.step for point in cut}), sorted(of_step)
    checks, differing = [Check("steps", _listed(wanted), _listed(done), "exactly", done == wanted)], []
    for name, field, tolerance in _FIELDS:
        values = [(then.step, getattr(then, field), getattr(now, field)) for then, now in pairs]
        check, step = _of_steps(name, values, None if exact else tolerance)
        checks.append(check)
        differing += [] if step is None else [step]
    return checks, min(differing, default=None)


def require(found: Resumption) -> None:
    """Raise a ReceiptError that names what differs, and the first step that does, unless everything holds."""
    broken = [check for check in found.checks if not check.ok]
    if broken:
        told = "; ".join(f"{check.name} {check.found}, undisturbed {check.expected}" for check in broken)
        raise ReceiptError(f"{found.name}, killed and resumed, is not what it is undisturbed: {told}")


class _Run:
    """One run in its folder, by as many processes as it takes."""

    def __init__(self, scratch: Path, name: str) -> None:
        self.folder, self._trajectory, self._log = scratch / name, scratch / f"{name}.jsonl", scratch / f"{name}.log"

    @property
    def points(self) -> list[Point]:
        """Return the steps that were done so far."""
        return read_trajectory(self._trajectory)

    @property
    def record(self) -> dict[str, Any]:
        """Return the record of the run."""
        return RunResult.read(self.folder).record

    def start(self, words: Sequence[str]) -> _Run:
        """Start a process of it."""
        told = ["--output_dir", str(self.folder), "--trajectory", str(self._trajectory)]
        self._started: Started = start_verb(*words, *told, log=self._log)
        return self

    def finish(self, name: str) -> None:
        """Wait for the end of the process.

        Raises:
            ReceiptError: it failed.
        """
        with self._started as process:
            process.wait()
        if process.returncode:
            raise ReceiptError(f"{name}: its run failed here: {last_words(self._finished(process))}")

    def kill(self, name: str, step: int, number: signal.Signals) -> None:
        """End the process once it has done so many steps.

        Raises:
            ReceiptError: it was over before, or does not end.
        """
        with self._started as process:
            while process.poll() is None and not any(point.step >= step for point in self.points):
                time.sleep(_POLL_SECONDS)
            process.send_signal(number)
            try:
                process.wait(_PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raise ReceiptError(f"{name}: {number.name} at step {step} did not end it") from None
        if process.returncode == 0 or not self.points:
            said = last_words(self._finished(process)) if process.returncode else "use more --steps"
            raise ReceiptError(f"{name}: it was over before it could be ended at step {step}: {said}")

    def _finished(self, process: Any) -> Finished:
        return subprocess.CompletedProcess(
            process.args, process.returncode, "", self._log.read_text("utf-8", errors="replace")
        )


def _of_steps(name: str, values: Sequence[tuple[int, Any, Any]], tolerance: float | None) -> tuple[Check, int | None]:
    """Return a check of (step, undisturbed, resumed), which shows the first that differs, or the last; and that step.

    Args:
        name: of the check.
        values: in the order of the steps.
        tolerance: relative; None where they must be the same.
    """
    told = "exactly" if tolerance is None else f"within {tolerance:.1%}"
    off = next((at for at in values if not _alike(at[1], at[2], tolerance)), None)
    if off is not None:
        return Check(name, f"{_short(off[1])} (step {off[0]})", _short(off[2]), told, False), off[0]
    shown = [_short(value) for value in values[-1][1:]] if values else ["none", "none"]
    return Check(name, shown[0], shown[1], told, True), None


def _held_out(whole: dict[str, Any], cut: dict[str, Any], exact: bool) -> Check:
    """Return a check of the held-out loss at each evaluation, the log of which must come back too."""
    curves = [
        {int(point["step"]): point["eval_loss"] for point in record["loss_curve"] if "eval_loss" in point}
        for record in (whole, cut)
    ]
    if curves[0].keys() != curves[1].keys():
        steps = [f"at steps {_listed(sorted(curve))}" for curve in curves]
        return Check("held-out loss", steps[0], steps[1], "exactly", False)
    values = [(step, curves[0][step], curves[1][step]) for step in sorted(curves[0])]
    return _of_steps("held-out loss", values, None if exact else LOSS_TOLERANCE)[0]


def _weights(whole: Path, cut: Path) -> Check:
    digests = [weights_digest(folder) for folder in (whole, cut)]
    return Check("final weights (sha256)", digests[0][:12], digests[1][:12], "exactly", digests[0] == digests[1])


def weights_digest(folder: Path) -> str:
    """Return a sha256 over the names and bytes of the weights that a run has left."""
    found = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        found.update(json.dumps([path.name, path.stat().st_size]).encode())
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


def _alike(then: Any, now: Any, tolerance: float | None) -> bool:
    if tolerance is None or then is None or now is None:
        # What is no number is not equal to itself, and yet the same.
        return bool(then == now) or repr(then) == repr(now)
    return bool(abs(now - then) <= tolerance * abs(then))


def _short(value: Any) -> str:
    return f"{value[:12]}" if isinstance(value, str) else "none" if value is None else repr(float(value))


def _listed(steps: Sequence[int]) -> str:
    whole = list(steps) == list(range(1, len(steps) + 1))
    return f"1 to {len(steps)}" if whole and steps else ", ".join(map(str, steps)) or "none"
