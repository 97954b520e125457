"""A module, the command line for one, in a process of its own: as a user would start it, whatever launched this one."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""A launcher's variables, which would make the process wait for others."""
_STARVED = ("out of memory", "outofmemory", "can't allocate memory", "cannot allocate memory", "memoryerror")
"""How CUDA, torch's CPU allocator, the system and Python say that there is no memory left, in lower case."""
_KILLED = -9
"""What Linux does to a process for which none is left."""

Finished = subprocess.CompletedProcess[str]


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
    """
    environment = {
        key: value for key, value in os.environ.items() if key not in _LAUNCHED and not key.startswith("ACCELERATE_")
    }
    # This very code, wherever the process is started.
    found = [*paths, str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(found)
    command = [sys.executable, "-m", module, *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def last_words(finished: Finished) -> str:
    """Return the last line of a process's standard error, which says what was wrong."""
    said = (finished.stderr.strip().splitlines() or [f"exit code {finished.returncode}"])[-1]
    return said.removeprefix("error: ")


def out_of_memory(finished: Finished, said: str) -> str:
    """Return how a process told that there was no memory left for it; empty where it ended otherwise.

    Args:
        finished: the process.
        said: its last words, or the error in its record.
    """
    if finished.returncode == _KILLED:
        return "the system ended it for want of memory"
    sentences = said.split(". ")
    return next((text.strip() for text in sentences if any(sign in text.lower() for sign in _STARVED)), "")
