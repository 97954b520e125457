"""What a run cost: time a step, tokens a second, peak memory, and the versions and hardware that it ran on."""

import ctypes
import gc
import os
import platform
import resource
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from transformers import TrainerCallback

PACKAGES = (
    "hf-peft-recipes",
    "torch",
    "transformers",
    "peft",
    "trl",
    "datasets",
    "accelerate",
    "bitsandbytes",
    "huggingface_hub",
    "tokenizers",
)


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages that decide what a run does, Python's among them."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            # A checkout on PYTHONPATH has no distribution.
            versions[package] = "not installed"
    return versions


def reset_peak_memory() -> None:
    """Begin to count the peak anew: the GPU's where there is one, else the process's where the kernel allows it."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        # Documented in proc(5): writing 5 sets VmHWM to the present resident size.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def release_free_memory() -> None:
    """Give memory that is not used any more back to the system and the GPU."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        # glibc keeps freed pages for itself until asked, see malloc_trim(3).
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return


def peak_memory_bytes() -> int:
    """Return the peak since the last reset: allocated on the GPU, else resident in host memory."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    # Kilobytes on Linux, bytes on macOS: getrusage(2) of each.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class StepClock(TrainerCallback):
    """Measures the steps of a run. Evaluation, saving and logging between steps are not counted, loading data is."""

    def __init__(self) -> None:
        self.step_seconds: list[float] = []
        self.tokens: float | None = None
        self._first_log: tuple[int, float] | None = None
        """Step and tokens at the first log, from which the rate is counted."""
        self.first_step_seconds: float | None = None
        """From the start of the process to the end of the first optimizer step."""
        self._mark = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock."""
        self._mark = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the step's time; the last step is logged whatever the interval, for its count of tokens."""
        now = time.perf_counter()
        self.step_seconds.append(now - self._mark)
        if self.first_step_seconds is None:
            self.first_step_seconds = time.time() - psutil.Process().create_time()
        self._mark = now
        if state.global_step >= state.max_steps:
            control.should_log = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Take the number of tokens seen so far."""
        if logs and "num_tokens" in logs and "loss" in logs:
            if self._first_log is None:
                self._first_log = (len(self.step_seconds), logs["num_tokens"])
            self.tokens = logs["num_tokens"]
        self._mark = time.perf_counter()

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave evaluation out of the next step's time."""
        self._mark = time.perf_counter()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave saving out of the next step's time."""
        self._mark = time.perf_counter()

    def step_median_seconds(self) -> float | None:
        """Return the median time of an optimizer step in seconds, the first one left out where there are more."""
        steps = sorted(self.step_seconds[1:] or self.step_seconds)
        return steps[len(steps) // 2] if steps else None

    def tokens_per_second(self) -> float | None:
        """Return the tokens that are no padding per second, over all processes, from the first logged step on."""
        if self.tokens is None or self._first_log is None:
            return None
        step, tokens = self._first_log
        if step == len(self.step_seconds):
            return self.tokens / sum(self.step_seconds)
        return (self.tokens - tokens) / sum(self.step_seconds[step:])


def host_facts() -> dict[str, Any]:
    """Return what the machine is: processor kind, system, cores; no host or user name."""
    return {"machine": platform.machine(), "system": platform.system(), "cores": os.cpu_count()}
