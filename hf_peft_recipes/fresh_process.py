"""A module, the command line for one, in a process of its own: as a user would start it, whatever launched this one."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_peft_recipes import supervision
from hf_peft_recipes.errors import PreemptedError

_LAUNCHED = (*supervision.OF_LAUNCHERS, *supervision.OF_WORKERS)
_MODULE = ("-P", "-m")
"""Not the working folder's modules: a data set may lie there, and be anybody's."""
_STARVED = (
    "out of memory", "outofmemory", "can't allocate memory", "cannot allocate memory", "memoryerror", "bad_alloc",
    "memory allocation of",
)  # fmt: skip
"""How CUDA, torch's CPU allocator, the system, Python, C++ and Rust say that there is no memory left, in lower case."""

Finished = subprocess.CompletedProcess[str]
Started = subprocess.Popen[bytes]


def run_verb(*words: str) -> Finished:
    """Return the finished process of `python -m hf_peft_recipes` with these words.

    Args:
        words: a verb and its flags.
    """
    return run_module("hf_peft_recipes", *words)


def run_module(module: str, *words: str, paths: Sequence[str] = ()) -> Finished:
    """Return the finished process of `python -m module` with these words.

    Args:
        module: dotted name.
        words: its command line.
        paths: folders whose packages go before the installed ones.

    Raises:
        PreemptedError: this process was asked to end; so was that one, and it has ended.
    """
    command = [sys.executable, *_MODULE, module, *words]
    process = subprocess.Popen(
        command, env=_environment(paths), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    written = supervision.wait_for(process)
    return Finished(command, process.returncode, *written)


def start_verb(*words: str, log: Path) -> Started:
    """Return the running process of `python -m hf_peft_recipes` with these words; it ends with this one.

    Args:
        words: a verb and its flags.
        log: gets what it prints, in place of what stands there.
    """
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, *_MODULE, "hf_peft_recipes", *words], env=_environment(), stdin=subprocess.DEVNULL,
            stdout=file, stderr=file,
        )  # fmt: skip


def _environment(paths: Sequence[str] = ()) -> dict[str, str]:
    """Return this process's environment for one that is nobody's worker, runs this very code and ends with this one."""
    environment = {key: value for key, value in os.environ.items() if not _is_of_launch(key)}
    # This very code, wherever the process is started.
    found = [*paths, str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return supervision.bound({**environment, "PYTHONPATH": os.pathsep.join(found)})


def _is_of_launch(variable: str) -> bool:
    """Return whether a launcher has set it, for the process that it started."""
    return variable in _LAUNCHED or variable.startswith(("ACCELERATE_", "TORCHELASTIC_"))


def last_words(finished: Finished) -> str:
    """Return what was wrong: the last line of a process's standard error, and the signal where one ended it."""
    said = (finished.stderr.strip().splitlines() or [f"exit code {finished.returncode}"])[-1].removeprefix("error: ")
    if finished.returncode >= 0:
        return said
    # A process that a signal ends says nothing about it: its last line is of something else.
    return f"the process was ended by a signal ({signal.strsignal(-finished.returncode)}); its last line: {said}"


def tells_of_memory(text: str) -> bool:
    """Return whether a message says that there is no memory left."""
    return any(sign in text.lower() for sign in _STARVED)


def out_of_memory(finished: Finished, said: str) -> str:
    """Return how a process told that there was no memory left for it; empty where it ended otherwise.

    Args:
        finished: the process.
        said: its last words, or the error in its record.
    """
    if finished.returncode == -signal.SIGKILL:
        return "the system ended it for want of memory"
    # Where native code gives up, what it says about it is not the last line.
    sentences = [*said.split(". "), *(reversed(finished.stderr.splitlines()) if finished.returncode < 0 else ())]
    return next((text.strip() for text in sentences if tells_of_memory(text)), "")


def outcome(finished: Finished, record: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return how a run ended: `done`, `oom`, `failed`, or `unavailable` where its record says so, and its last words.

    Args:
        finished: its process.
        record: that it left.

    Raises:
        PreemptedError: the process was asked to end, which says nothing of the run.
    """
    if finished.returncode == PreemptedError.exit_code:
        raise PreemptedError(last_words(finished))
    if finished.returncode == 0 and record:
        reason = record.get("unavailable")
        return {"status": "unavailable", "error": reason} if reason else {"status": "done"}
    said = str((record or {}).get("error") or last_words(finished))
    starved = out_of_memory(finished, said)
    said = starved or said
    return {"status": "oom" if starved else "failed", "exit_code": finished.returncode, "error": said[-500:]}
