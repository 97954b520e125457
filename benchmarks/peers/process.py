"""One contender's run, in a fresh process with caches of its own."""

import json
import os
import subprocess
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.peers.contenders import Contender
from benchmarks.peers.environments import ROOT, python_of
from benchmarks.peers.job import Job


def run(contender: Contender, job: Job) -> dict[str, Any]:
    """Return the contender's record with `status`: `done`, `unavailable` or `failed`, the latter two with a reason.

    Args:
        contender: a line of the table.
        job: what it trains.
    """
    python = python_of(contender.environment)
    begun = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "load_average": os.getloadavg()[0]}
    if python is None:
        command = f"python -m benchmarks.peers.environments {contender.environment}"
        return {"status": "unavailable", "reason": f"its environment was not made: {command}", **begun}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        job.write(Path(scratch) / "job.json")
        # A cache that an earlier run has filled would spare the later one its work.
        environment = {
            **os.environ, "HF_HOME": f"{scratch}/home", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT),
            "WANDB_DISABLED": "true",
        }  # fmt: skip
        finished = subprocess.run(
            [str(python), "-m", f"benchmarks.peers.{contender.module}", f"{scratch}/job.json"],
            cwd=scratch, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
    begun["process_seconds"] = time.perf_counter() - start
    printed = finished.stdout.strip().splitlines()
    if finished.returncode or not printed:
        said = [line.strip() for line in finished.stderr.splitlines() if line.strip()]
        return {"status": "failed", "reason": said[-1] if said else f"exit code {finished.returncode}", **begun}
    record: dict[str, Any] = json.loads(printed[-1])
    if "unavailable" in record:
        return {"status": "unavailable", "reason": record["unavailable"], **begun}
    return {"status": "done", **record, **begun}


def run_module(name: str, *words: str) -> str:
    """Return the last line that a module of this package prints, run in a process of its own.

    Raises:
        RuntimeError: it failed.
    """
    with tempfile.TemporaryDirectory() as home:
        finished = subprocess.run(
            [str(python_of(None)), "-m", f"benchmarks.peers.{name}", *words], cwd=ROOT,
            env={**os.environ, "HF_HOME": home, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
    if finished.returncode:
        raise RuntimeError(f"benchmarks.peers.{name}: {finished.stderr[-2000:]}")
    return (finished.stdout.strip().splitlines() or [""])[-1]
