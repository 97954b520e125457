"""Processes that belong together: who ends takes along those that it started, and waits until they have saved.

A child dies with its parent by its own doing: it asks the system for SIGTERM when the parent ends (PR_SET_PDEATHSIG),
and looks whether the parent is still there. Launchers do not see to that: `accelerate launch` leaves its one process
behind when it is ended. They also turn each exit code into 1, and kill after 30 s what is still writing; so workers
leave their process numbers and exit codes in a folder, and are sent signals past the launcher.
"""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from hf_peft_recipes import preemption
from hf_peft_recipes.errors import PreemptedError

PARENT_VARIABLE = "HF_PEFT_RECIPES_PARENT"
"""Set for a process that is to end with the one of this number."""
WORKERS_VARIABLE = "HF_PEFT_RECIPES_WORKERS"
"""Set by our own launcher: the folder in which workers leave their process numbers and exit codes."""
COMMAND_VARIABLE = "HF_PEFT_RECIPES_COMMAND"
"""Set by our own launcher: the command as the user gave it."""
OF_LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""A launcher's variables, which would make a process wait for others."""
OF_WORKERS = (WORKERS_VARIABLE, COMMAND_VARIABLE)

_SIGNS = (("TORCHELASTIC_RUN_ID",), ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_BACKEND"))
"""Variables by which torchrun is known, and `accelerate launch` of one process; a rank alone is set by clusters too."""
_LAUNCHERS = ("accelerate", "torchrun", "torch.distributed", "torch/distributed", "deepspeed")
"""In the command line of a process that starts others."""
_PR_SET_PDEATHSIG = 1
"""prctl(2)."""
_READY, _CODE = ".ready", ".code"
"""Endings of what a worker leaves, after its process number."""
_POLL_SECONDS = 0.1
_LAST_SECONDS = 10.0
"""That a process has to end once the user insists."""

_BOUND_LAUNCHER = """
import logging, os, sys
from hf_peft_recipes.supervision import follow_parent, has_told
follow_parent()
logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
from accelerate.commands.launch import main
try:
    main()
except Exception:
    if not has_told():
        raise
    sys.exit(1)
"""
"""accelerate's launcher as a child that ends with its parent, and says nothing of a run that has told why it failed."""


def follow_parent() -> None:
    """End with the process that started this one, where that is a launcher or one of ours; call it first of all.

    What a shell started lives on without it, as ever.

    Raises:
        PreemptedError: it has ended already.
    """
    named = os.environ.pop(PARENT_VARIABLE, None)
    parent = os.getppid()
    if named is None:
        if not any(all(name in os.environ for name in names) for names in _SIGNS):
            return
        if not _is_launcher(parent):
            # Taken over by the first process of the system: a launcher there was.
            if parent == 1:
                raise PreemptedError("preempted: the launcher has ended", "launcher")
            return
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != (parent if named is None else int(named)):
        raise PreemptedError("preempted: the process that started this one has ended", "parent")


def bound(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment for a child that ends with this process, by `follow_parent`."""
    return {**environment, PARENT_VARIABLE: str(os.getpid())}


def register() -> None:
    """Tell our own launcher, if there is one, that this process listens to signals."""
    if folder := os.environ.get(WORKERS_VARIABLE):
        (Path(folder) / f"{os.getpid()}{_READY}").touch()


def leave_code(exit_code: int) -> None:
    """Leave the exit code of this process for our own launcher, if there is one."""
    if folder := os.environ.get(WORKERS_VARIABLE):
        path = Path(folder) / f"{os.getpid()}{_CODE}"
        path.with_suffix(".partial").write_text(str(exit_code), encoding="utf-8")
        path.with_suffix(".partial").replace(path)


def has_told() -> bool:
    """Return whether a process has left its exit code, and so has said itself why it ended."""
    return any(Path(os.environ.get(WORKERS_VARIABLE, os.devnull)).glob(f"*{_CODE}"))


def exit_code_of(folder: Path, launchers: int) -> int:
    """Return the exit code of a run from what its workers left.

    The launcher ends all where one has failed, and those say then that they were asked to end: what says something else
    came first. Who was ended by force says nothing, and was not asked.

    Args:
        folder: of `WORKERS_VARIABLE`.
        launchers: the code of the launcher itself, below 0 for a signal.
    """
    left = sorted(folder.glob(f"*{_CODE}"), key=lambda path: path.stat().st_mtime_ns)
    codes = [int(path.read_text(encoding="utf-8")) for path in left]
    if failed := [code for code in codes if code not in (0, PreemptedError.exit_code)]:
        return failed[0]
    if PreemptedError.exit_code in codes and not _workers(folder) - {int(path.stem) for path in left}:
        return PreemptedError.exit_code
    return launchers if launchers >= 0 else 128 - launchers


def is_launched() -> bool:
    """Return whether a launcher has started this process: those turn each exit code into 1."""
    return "RANK" in os.environ or any(all(name in os.environ for name in names) for names in _SIGNS)


def told_command(given: str) -> str:
    """Return the command that the user gave: our own launcher's, else the one of this process."""
    return os.environ.get(COMMAND_VARIABLE, given)


def wait_for(process: "subprocess.Popen[str]") -> tuple[str, str]:
    """Return what a child has written to both streams, once it has ended.

    Raises:
        PreemptedError: this process was asked to end; so was the child, and it has ended by now.
    """
    try:
        return process.communicate()
    except PreemptedError as asked:
        with preemption.deferred():
            _send(process.pid, signal.SIGTERM)
            _, said = process.communicate()
        # What it says of itself is more: the step.
        last = (said.strip().splitlines() or [""])[-1].removeprefix("error: ")
        raise preemption.answer(last if last.startswith("preempted") else str(asked), asked.reason) from None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def launch_workers(options: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run accelerate's launcher; return the exit code of the run.

    Args:
        options: of `accelerate launch`.
        environment: of the workers.

    Raises:
        KeyboardInterrupt: the user insisted.
    """
    with tempfile.TemporaryDirectory(prefix="workers-") as scratch:
        folder = Path(scratch)
        began = str(time.time() - preemption.process_age())
        environment = {**environment, WORKERS_VARIABLE: scratch, preemption.STARTED_VARIABLE: began}
        # In a group of its own: Ctrl-C on the terminal is for this process, which hands it on.
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOUND_LAUNCHER, *options], env=bound(environment), process_group=0
        )
        try:
            try:
                process.wait()
            except PreemptedError as asked:
                with preemption.deferred():
                    _hand_on(process, folder, _signal_of(asked))
                    preemption.settle()
        finally:
            if process.poll() is None:
                _insist(process, folder)
        return exit_code_of(folder, process.returncode)


def _hand_on(process: "subprocess.Popen[bytes]", folder: Path, number: signal.Signals) -> None:
    """Send every worker, whenever it is ready for it, the signal, and wait for the launcher to end."""
    told: set[int] = set()
    while process.poll() is None:
        for pid in _workers(folder) - told:
            _send(pid, number)
            told.add(pid)
        time.sleep(_POLL_SECONDS)


def _insist(process: "subprocess.Popen[bytes]", folder: Path) -> None:
    """End workers and launcher at once, by force where they do not."""
    for pid in _workers(folder):
        _send(pid, signal.SIGINT)
    try:
        process.wait(_LAST_SECONDS)
    except subprocess.TimeoutExpired:
        for pid in (*_workers(folder), process.pid):
            _send(pid, signal.SIGKILL)
        process.wait()


def _workers(folder: Path) -> set[int]:
    """Return the numbers of the processes that listen, or have listened."""
    return {int(path.stem) for path in folder.glob(f"*{_READY}")}


def _signal_of(asked: PreemptedError) -> signal.Signals:
    names = {one.name: one for one in preemption.SIGNALS}
    return names.get(asked.reason, signal.SIGTERM)


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _is_launcher(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return any(name in words for name in _LAUNCHERS)
