"""Every change of the disk that a short run makes, failed in turn and in every way: what becomes of the run.

    python -m tests.faults.sweep [--every 1] [--out benchmarks/results/faults.json]

The run stops at the begin of each of its phases, and a fork of it goes on for each fault: with the shim armed, to its
end or its death. Then the folder is looked at, and where the fork did not come to its end, another one resumes it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.forks import Ended, code_of, forked, leave, split
from hf_peft_recipes.lock import LOCK_FILE
from hf_peft_recipes.results import earlier_record

from .course import EVERY, STEPS, Undisturbed, command, end_problems, restore, state_of, state_problems
from .shim import KINDS, Operation, Shim, read_log

STAYS_FULL = "disk full to the end"
"""As `disk full`, and it does not get better with the end of the phase."""
DISK = 12
"""The exit code that tells of a disk that cannot be written."""
ALL_KINDS = [*[kind for kind in KINDS if kind not in ("count", "read only")], STAYS_FULL]
PHASES = ["beginning", *[f"checkpoint {step}" for step in range(EVERY, STEPS + 1, EVERY)], "finishing"]


@dataclass(frozen=True)
class Fault:
    """One fault."""

    phase: str
    kind: str
    operation: Operation

    @property
    def shim_kind(self) -> str:
        """Return the shim's kind."""
        return "disk full" if self.kind == STAYS_FULL else self.kind

    @property
    def leaves(self) -> str:
        """Return what is told to be left over where it hits a removal: what cannot be removed stays."""
        first = self.operation.path.split("/")[0]
        return f"left over: {first}" if self.operation.name == "unlink" else ""

    @property
    def removes_old(self) -> bool:
        """Return whether it hits what removes an old checkpoint."""
        first = self.operation.path.split("/")[0]
        return first.endswith(".removed") or (first.startswith("checkpoint-") and self.operation.name == "unlink")

    def __str__(self) -> str:
        one = self.operation
        return f"{self.phase}: {self.kind} at change {one.number} ({one.name} {one.path})"


@dataclass
class Outcome:
    """What became of a run with one fault."""

    fault: Fault
    end: str
    """`went on` to the end, `stopped` with an error, `died`."""
    wrong: list[str] = field(default_factory=list)
    """What of the folder, after the fault, is neither the old state nor the new."""
    lost: list[str] = field(default_factory=list)
    """Why the run did not come to the end that it would have had."""
    orphans: int = 0
    """Processes left running."""

    @property
    def is_fine(self) -> bool:
        """Return whether nothing is wrong."""
        return not (self.wrong or self.lost or self.orphans)

    def __str__(self) -> str:
        told = [*self.wrong, *self.lost, *([f"{self.orphans} processes left"] if self.orphans else [])]
        return f"{self.fault}: {self.end}; {'; '.join(told) or 'fine'}"


Choose = Callable[[list[Fault]], list[Fault]]


def faults_of(phase: str, operations: Sequence[Operation]) -> list[Fault]:
    """Return every fault that a phase can have, given the changes of the disk that it makes."""
    found = [Fault(phase, kind, operation) for operation in operations for kind in ALL_KINDS]
    return [fault for fault in found if fault.operation.can_be(fault.shim_kind)]


def account_problems(folder: Path, said: str) -> list[str]:
    """Return what a run that went on does not tell of its checkpoints.

    Args:
        folder: of the run.
        said: on standard error.
    """
    account = json.loads((folder / "result.json").read_text(encoding="utf-8"))["checkpoints"]
    steps = {*account["written"], *map(int, account["failed"])}
    problems = [] if steps == set(range(EVERY, STEPS + 1, EVERY)) else [f"the record tells of checkpoints {steps}"]
    untold = [step for step in account["failed"] if f"no checkpoint at step {step}" not in said]
    return problems + [f"nothing was said of checkpoint {step}, which is not there" for step in untold]


def stop_problems(fault: Fault, ended: Ended) -> list[str]:
    """Return what is wrong with a run that ended with an error: it could have gone on, or did not say what was wrong."""
    problems = []
    if fault.phase.startswith("checkpoint") and fault.kind != STAYS_FULL:
        problems.append("it stopped for a checkpoint that could not be written")
    if ended.code != DISK or "Traceback" in ended.said:
        problems.append(f"it ended with {ended.code}: {ended.said.strip()[-300:]}")
    return problems


class Sweep:
    """The faults of one run, phase by phase.

    Args:
        folder: of the run.
        scratch: a folder beside it for what is kept meanwhile.
        wanted: what the run leaves undisturbed.
        choose: which of a phase's faults to inject.
        told: is called with each outcome as it comes.
        phases: that are gone through.
    """

    def __init__(
        self,
        folder: Path,
        scratch: Path,
        wanted: Undisturbed,
        choose: Choose,
        told: Callable[[Outcome], None],
        phases: Sequence[str] = PHASES,
    ) -> None:
        self._folder, self._scratch, self._wanted, self._choose, self._told = folder, scratch, wanted, choose, told
        self._phases, self._shim = phases, Shim()
        self._fault: Fault | None = None
        """In a fork: what it goes through."""
        self.gone_on: dict[str, list[str]] = {}
        """A folder's state to what was wrong at the end of the run that went on from it: the same goes on alike."""
        self.outcomes: list[Outcome] = []
        self.operations: dict[str, list[Operation]] = {}
        """Phase to the changes of the disk that it makes."""

    def run(self) -> None:
        """Go through all phases. It is done in a fork: the folder is another's then, and nothing of the run is left."""
        problem = code_of(command(self._folder, callbacks=[self._callback()]))
        if self._fault is not None:
            leave(problem)
        if problem or end_problems(self._folder, self._wanted):
            raise RuntimeError("the run itself was disturbed")

    def _callback(self) -> Any:
        from transformers import TrainerCallback

        reach, pass_on = self._reach, self._pass

        class Stops(TrainerCallback):
            def on_init_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                reach("beginning", {None})

            def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                pass_on()

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                step = state.global_step
                if step % EVERY == 0:
                    reach(f"checkpoint {step}", {step - EVERY or None, step})

            def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                pass_on()

            def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                reach("finishing", {STEPS})

        return Stops()

    def _pass(self) -> None:
        """The phase is over: what it does not hit is not to be hit later."""
        if self._fault is not None and self._fault.kind != STAYS_FULL:
            self._shim.disarm()

    def _reach(self, phase: str, allowed: set[int | None]) -> None:
        """Let a fork go on from here for each of the phase's faults."""
        if self._fault is not None or phase not in self._phases:
            return
        place = self._scratch / phase.replace(" ", "-")
        kept = place if self._folder.exists() else None
        if kept:
            restore(kept, self._folder)
        log = place.with_suffix(".log")
        counted = self._go_on(Fault(phase, "count", Operation(0, "", 0, "")), log)
        if counted is None:
            return
        if counted.code or end_problems(self._folder, self._wanted):
            raise RuntimeError(f"{phase}: disturbed by counting alone: {counted.said}")
        self.operations[phase] = read_log(log, self._folder)
        for fault in self._choose(faults_of(phase, self.operations[phase])):
            restore(self._folder, kept)
            ended = self._go_on(fault, None)
            if ended is None:
                return
            outcome = self._judge(fault, ended, allowed)
            self.outcomes.append(outcome)
            self._told(outcome)
        restore(self._folder, kept)

    def _go_on(self, fault: Fault, log: Path | None) -> Ended | None:
        """Return how a fork ended that goes on from here with a fault; in the fork itself, None."""
        ended = split()
        if ended is None:
            self._fault = fault
            self._shim.arm(self._folder, fault.shim_kind, fault.operation.number, log)
        return ended

    def _judge(self, fault: Fault, ended: Ended, allowed: set[int | None]) -> Outcome:
        end = "died" if ended.code < 0 else "stopped" if ended.code else "went on"
        outcome = Outcome(fault, end, orphans=ended.orphans)
        if end == "went on":
            outcome.lost = [one for one in end_problems(self._folder, self._wanted) if one != fault.leaves]
            outcome.wrong = account_problems(self._folder, ended.said)
            return outcome
        if "timed out" in ended.said:
            outcome.lost = ["it hung"]
            return outcome
        if fault.removes_old:
            # It is removed because the new one will be there whatever comes.
            allowed = allowed - {min(allowed, key=lambda step: step or 0)}
        if end == "stopped":
            outcome.wrong = stop_problems(fault, ended)
        if fault.kind == STAYS_FULL:
            # It trained on for as long as it could: any later step but those of other numbers.
            allowed = allowed | set(self._wanted.checkpoints)
        outcome.wrong += state_problems(self._folder, allowed, self._wanted)
        state = state_of(self._folder)
        if state not in self.gone_on:
            outcome.orphans += self._resume(state)
        outcome.lost = self.gone_on[state]
        return outcome

    def _resume(self, state: str) -> int:
        """Let the run go on from its folder as a user would, and keep what was wrong; return the processes left."""
        if earlier_record(self._folder).get("status") == "done":
            # It came to its end before it died, as the folder says: nothing goes on that would remove the lock.
            problems = end_problems(self._folder, self._wanted)
            self.gone_on[state] = [one for one in problems if one != f"left over: {LOCK_FILE}"]
            return 0
        # Before the run's own files were there, there is nothing to go on with: it is begun as the first time.
        begun = any((self._folder / name).is_file() for name in ("recipe.yaml", "result.json"))
        ended = forked(command(self._folder, resume=begun))
        problems = [f"going on ended with {ended.code}: {ended.said[-500:]}"] if ended.code else []
        self.gone_on[state] = problems + (end_problems(self._folder, self._wanted) if not problems else [])
        return ended.orphans
