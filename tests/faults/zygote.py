"""A process that has imported everything, with the shim preloaded, and does each job that it is told in a fork.

Jobs come on standard input and answers go to standard output, a line of JSON each. `Zygote` is the other end.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from .shim import build

ROOT = Path(__file__).parents[2]


class Zygote:
    """The process, as who uses it sees it, from entering the `with` block to leaving it.

    Args:
        environment: variables beside this process's own.
        whole: leave nothing out of runs, see `course.quicken`.
    """

    def __init__(self, environment: Mapping[str, str] | None = None, whole: bool = False) -> None:
        self._environment, self._words = dict(environment or {}), ["whole"] if whole else []

    def __enter__(self) -> Self:
        self._scratch = tempfile.TemporaryDirectory(prefix="faults-")
        given = {
            **os.environ, "HF_HUB_OFFLINE": "1", "TORCHDYNAMO_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": "1", **self._environment,
        }  # fmt: skip
        given["LD_PRELOAD"] = str(build(Path(self._scratch.name)))
        given["PYTHONPATH"] = os.pathsep.join(
            [str(ROOT / "tests"), str(ROOT), *filter(None, [given.get("PYTHONPATH")])]
        )
        self._process = subprocess.Popen(
            [sys.executable, "-m", "faults.zygote", *self._words],
            env=given,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()
        self._scratch.cleanup()

    def do(self, job: str, **arguments: Any) -> dict[str, Any]:
        """Return `{code, said, orphans, value}` of a job: how its fork ended, and what it returned.

        Args:
            job: a name of `jobs.JOBS`.
            arguments: of that function, as JSON has them.

        Raises:
            RuntimeError: the process itself ended.
        """
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"job": job, "arguments": arguments}, default=str) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the zygote ended with {self._process.wait()}")
        found: dict[str, Any] = json.loads(answer)
        return found


def serve(jobs: Mapping[str, Callable[..., Any]]) -> None:
    """Do jobs until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        told = json.loads(line)
        ended = jobs[told["job"]](**told["arguments"])
        value = {"code": ended.code, "said": ended.said, "orphans": ended.orphans, "value": ended.value}
        print(json.dumps(value, default=str), file=answers, flush=True)


def main() -> None:
    """Import and warm up, then serve."""
    from .course import quicken, train
    from .jobs import JOBS

    if sys.argv[1:] != ["whole"]:
        quicken()
    with tempfile.TemporaryDirectory() as scratch:
        # What is imported only once it is needed, and what is made ready only once.
        train(Path(scratch) / "out", max_steps=2)
    serve(JOBS)


if __name__ == "__main__":
    main()
