"""Our recipe on the job's rows, by the command that a user types.

python -m benchmarks.peers.ours JOB.json
"""

import json
import runpy
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from benchmarks.peers.job import LORA, Job, read_job
from benchmarks.peers.recording import watching


def command(job: Job, folder: Path) -> list[str]:
    """Return the words of the job's command, from `hf-peft-recipes` on."""
    options = {
        "model": job.model, "dataset": job.rows, "output_dir": folder, "max_steps": job.steps,
        # What is measured is training, so nothing else is done.
        "data.validation_size": 0, "evaluation.max_rows": 0, "save_strategy": "no", "certify": "off",
    }  # fmt: skip
    if job.matched:
        options |= {**job.training(), **LORA, "max_length": job.length, "packing": job.packed}
    options |= job.settings
    return [
        "hf-peft-recipes",
        "train",
        job.recipe,
        *(word for key, value in options.items() for word in (f"--{key}", _text(value))),
    ]


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def main() -> None:
    """Train, and print the record in one line."""
    job = read_job()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "out"
        sys.argv = command(job, folder)
        with watching(job) as recorder, redirect_stdout(sys.stderr):
            try:
                runpy.run_module("hf_peft_recipes", run_name="__main__")
            except SystemExit as end:
                if end.code:
                    raise
        speed = json.loads((folder / "result.json").read_text(encoding="utf-8"))["speed"]
    print(json.dumps({**recorder.report(), "speed": speed}))


if __name__ == "__main__":
    main()
