"""What the zygote can do: each job is a function that returns how its fork ended."""

from __future__ import annotations

import ctypes
import functools
import importlib
import itertools
import json
import os
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.forks import Ended, forked

from .course import Undisturbed, command, end_problems, state_problems, undisturbed
from .shim import Shim, read_log
from .sweep import PHASES, Fault, Outcome, Sweep

_NEW_USER, _NEW_MOUNTS = 0x10000000, 0x00020000
"""CLONE_NEWUSER and CLONE_NEWNS of linux/sched.h."""
_REMOUNT = 32
"""MS_REMOUNT of linux/mount.h."""
_HOURS = 12 * 3600.0
_libc = ctypes.CDLL(None, use_errno=True)


@functools.cache
def wanted(scratch: str) -> Undisturbed:
    """Return what the run leaves undisturbed, found out once in a fork."""
    ended = forked(lambda: undisturbed(Path(scratch) / "undisturbed"))
    if ended.code:
        raise RuntimeError(ended.said)
    found: Undisturbed = ended.value
    return found


def undisturbed_run(scratch: str) -> Ended:
    """Return the run as it is without faults: the folder `undisturbed` of the scratch stays."""
    return Ended(0, "", 0, asdict(wanted(scratch)) | {"names": sorted(wanted(scratch).names)})


def log(scratch: str) -> Ended:
    """Return every change of the disk that a run makes: `[name, size, path]` each."""
    place, lines = Path(scratch) / "logged", Path(scratch) / "changes.log"

    def work() -> Any:
        shim = Shim()
        shim.arm(place, "count", log=lines)
        command(place)()
        shim.disarm()
        return [[one.name, one.size, one.path] for one in read_log(lines, place)]

    return forked(work)


def run(folder: str, resume: bool = False, **overrides: Any) -> Ended:
    """Let the run go in a folder; its record."""
    return forked(command(Path(folder), resume=resume, **overrides))


def sweep(
    scratch: str,
    number: int | None = None,
    seed: int | None = 0,
    progress: str | None = None,
    kinds: list[str] | None = None,
    phases: list[str] | None = None,
    without: str | None = None,
) -> Ended:
    """Return the outcomes of faults, `number` of each phase drawn by a seed, or all; and how many changes each makes.

    Args:
        scratch: a folder.
        number: of faults a phase; None for all.
        seed: of the draw; None takes the last ones.
        progress: a file that gets a line an outcome that is not fine, and a line every hundred.
        kinds: of faults; None for all.
        phases: of the run; None for all.
        without: what is taken from the code, a name of `_TAKEN`, so that there is something to find.
    """
    found = wanted(scratch)
    draw = random.Random(seed)

    def choose(faults: list[Fault]) -> list[Fault]:
        faults = [fault for fault in faults if fault.kind in (kinds or [fault.kind])]
        if number is None:
            return faults
        return faults[-number:] if seed is None else draw.sample(faults, min(number, len(faults)))

    count = Counter[bool]()

    def told(outcome: Outcome) -> None:
        count[outcome.is_fine] += 1
        if progress and (not outcome.is_fine or not count.total() % 100):
            with Path(progress).open("a", encoding="utf-8") as file:
                file.write(f"{count.total()}, {count[False]} not fine: {outcome}\n")

    def work() -> Any:
        if without:
            _TAKEN[without]()
        place = Path(tempfile.mkdtemp(prefix="sweep-", dir=scratch))
        swept = Sweep(place / "out", place, found, choose, told, phases or PHASES)
        swept.run()
        return {
            "outcomes": [asdict(one) | {"told": str(one)} for one in swept.outcomes],
            "operations": {phase: Counter(one.name for one in found) for phase, found in swept.operations.items()},
            "states": len(swept.gone_on),
        }

    return forked(work, limit_seconds=_HOURS)


def soak(scratch: str, cycles: int, seed: int) -> Ended:
    """Return what `benchmarks.soak` finds."""
    from benchmarks import soak as killing

    place = Path(scratch) / "soak"
    place.mkdir()
    return forked(lambda: killing.soak(place, cycles, seed), limit_seconds=_HOURS)


def _take_random_state() -> None:
    from transformers import Trainer

    Trainer._load_rng_state = lambda *_: None


def _take_syncs() -> None:
    os.fsync = lambda _: None


_TAKEN = {"_load_rng_state": _take_random_state, "fsync": _take_syncs}


def scarce_disk(scratch: str, place: str, megabytes: float, read_only_from: int = 0) -> Ended:
    """Return what becomes of a run on a file system of its own, and of the same run once that has become better.

    Args:
        scratch: a folder.
        place: that it is mounted at, for this fork alone.
        megabytes: its size.
        read_only_from: the step after which nothing can be written; 0 for never.
    """
    found, mounted = wanted(scratch), Path(place)

    def work() -> Any:
        _own_namespace()
        _mount(mounted, 0, f"size={int(megabytes * 2**20)}")
        folder = mounted / "out"
        callbacks = [_at_step(read_only_from, lambda: Shim().arm(folder, "read only", 1))] if read_only_from else []
        first = forked(command(folder, callbacks=callbacks))
        wrong = state_problems(folder, {None, *found.checkpoints}, found)
        record = folder / "result.json"
        status = json.loads(record.read_text("utf-8")) if record.is_file() else {}
        _mount(mounted, _REMOUNT, "size=64m")
        second = forked(command(folder, resume=True))
        return {
            "first": asdict(first), "record": status, "wrong": wrong, "second": asdict(second),
            "lost": end_problems(folder, found),
        }  # fmt: skip

    return forked(work)


def _at_step(step: int, action: Callable[[], None]) -> Any:
    from transformers import TrainerCallback

    class AtStep(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == step:
                action()

    return AtStep()


def _own_namespace() -> None:
    """Leave the namespaces of users and mounts, as `unshare --user --map-root-user --mount` does."""
    user, group = os.getuid(), os.getgid()
    _require(_libc.unshare(_NEW_USER | _NEW_MOUNTS))
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        Path(f"/proc/self/{name}").write_text(text)


def _mount(place: Path, flags: int, options: str) -> None:
    _require(_libc.mount(b"tmpfs", os.fsencode(place), b"tmpfs", flags, options.encode()))


def _require(result: int) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def command_line(words: list[str], phase: str | None = None, number: int = 0) -> Ended:
    """Run the command line, to which a signal comes in one of its phases.

    Args:
        words: of the command line.
        phase: a name of PLACES; None for no signal.
        number: of the signal.
    """

    def work() -> None:
        from hf_peft_recipes.cli.app import main

        # Where this process was started in the background of a shell, it ignores Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if phase:
            _send_in(phase, number)
        sys.argv = ["hf-peft-recipes", *words]
        main()

    return forked(work, limit_seconds=600.0)


PLACES = {
    "loading": ("hf_peft_recipes.models", "load_base", 1),
    "tokenising": ("hf_peft_recipes.assembly", "tokenize", 1),
    "stepping": ("transformers:Trainer", "training_step", 3),
    "saving": ("hf_peft_recipes.checkpoints.writing:Writing", "finish", 2),
    "evaluating": ("hf_peft_recipes.runner", "score_rows", 2),
    "pushing": ("hf_peft_recipes.runner", "publish_run", 1),
}
"""A phase of a run to what begins it: a module or a class, its function, and which call of that."""


def _send_in(phase: str, number: int) -> None:
    """Let this process have a signal as soon as the phase has begun."""
    where, name, wanted_call = PLACES[phase]
    module, _, inner = where.partition(":")
    owner = importlib.import_module(module)
    owner = getattr(owner, inner) if inner else owner
    function, calls = getattr(owner, name), itertools.count(1)

    @functools.wraps(function)
    def begins(*arguments: Any, **named: Any) -> Any:
        if next(calls) == wanted_call:
            os.kill(os.getpid(), number)
        return function(*arguments, **named)

    setattr(owner, name, begins)


JOBS: dict[str, Callable[..., Ended]] = {
    "undisturbed": undisturbed_run, "log": log, "run": run, "sweep": sweep, "soak": soak,
    "scarce_disk": scarce_disk, "command_line": command_line,
}  # fmt: skip
