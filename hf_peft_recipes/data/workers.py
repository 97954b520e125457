"""Work on data in several processes, which share nothing with this one and import no torch.

Neither `fork` nor `spawn` will do here: a fork of a process that holds torch's threads may hang, and a spawned one
runs the caller's script again unless it is guarded. So a worker is a fresh interpreter that is handed its job.
"""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from hf_peft_recipes import supervision
from hf_peft_recipes.errors import RecipeError

Job = TypeVar("Job")
Result = TypeVar("Result")

WORTH_A_PROCESS = 2
"""Chunks in a job from which starting an interpreter pays: about 8 MiB of text each, some seconds of work."""


def in_processes(function: Callable[[Job], Result], jobs: Sequence[Job]) -> list[Result]:
    """Return the function's result for every job, in order; small jobs are done right here.

    Args:
        function: at the top level of a module, since a worker finds it by name.
        jobs: each a tuple whose first item is the sequence of chunks, or a corpus, that tells how much there is to do.

    Raises:
        RecipeError: as the function raises it.
    """
    if len(jobs) < 2 or not all(_is_large(job) for job in jobs):
        return [function(job) for job in jobs]
    environment = {
        **os.environ,
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    environment = supervision.bound(environment)
    running = [
        subprocess.Popen(
            [sys.executable, "-P", "-c", "from hf_peft_recipes.data.workers import work; work()"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
        )
        for _ in jobs
    ]  # fmt: skip
    try:
        for process, job in zip(running, jobs, strict=True):
            assert process.stdin
            pickle.dump((function, job), process.stdin)
            process.stdin.close()
        return [_result(process) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()


def work() -> None:
    """Do the job that stands on standard input; write its result, or its error, to standard output."""
    supervision.follow_parent()
    function, job = pickle.load(sys.stdin.buffer)
    answer: tuple[Any, RecipeError | None]
    try:
        answer = (function(job), None)
    except RecipeError as error:
        answer = (None, error)
    pickle.dump(answer, sys.stdout.buffer)
    sys.stdout.buffer.flush()


def _result(process: "subprocess.Popen[bytes]") -> Any:
    assert process.stdout
    written = process.stdout.read()
    if process.wait() != 0 or not written:
        raise RuntimeError(f"a data worker ended with exit code {process.returncode}")
    result, error = pickle.loads(written)
    if error is not None:
        raise error
    return result


def _is_large(job: Any) -> bool:
    chunks = getattr(job[0], "chunks", job[0])
    # What a caller holds in memory is not worth sending; files are found again by their path.
    return len(chunks) >= WORTH_A_PROCESS and all(hasattr(chunk, "path") for chunk in chunks)
