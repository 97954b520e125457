"""One bar on a terminal; one plain line every few steps where there is none."""

import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

GIB = 2**30
_LINES = 20
"""How many lines a run prints where it cannot draw a bar."""


class Progress(TrainerCallback):
    """Shows step, loss, tokens a second, memory and the time that is left, on standard error."""

    def __init__(self, memory_bytes: Callable[[], int]) -> None:
        self._memory_bytes = memory_bytes
        self._bar: Any = None
        self._started = 0.0
        self._loss: float | None = None
        self._reward: float | None = None
        self._tokens: float | None = None
        self._last_line = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the bar; that of a run which goes back is closed."""
        if self._bar is not None:
            self._bar.close()
        self._started, self._last_line = time.perf_counter(), state.global_step
        if sys.stderr.isatty():
            form = "{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
            self._bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training", bar_format=form)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Take the newest loss; print a line when there is no bar and it is time for one."""
        logs = logs or {}
        if "loss" in logs:
            self._reward = logs.get("reward")
            self._loss, self._tokens = logs["loss"], logs.get("num_tokens", self._tokens)
        if self._bar is not None:
            self._bar.set_postfix_str(self._figures())
            if "eval_loss" in logs:
                self._bar.write(f"step {state.global_step}: validation loss {logs['eval_loss']:.4f}", file=sys.stderr)
            return
        due = state.global_step - self._last_line >= max(1, state.max_steps // _LINES)
        if ("loss" in logs and (due or state.global_step in (1, state.max_steps))) or "eval_loss" in logs:
            evaluated = f", validation loss {logs['eval_loss']:.4f}" if "eval_loss" in logs else ""
            elapsed = time.perf_counter() - self._started
            left = elapsed / max(state.global_step, 1) * (state.max_steps - state.global_step)
            line = f"step {state.global_step}/{state.max_steps}: {self._figures()}{evaluated}, {left:.0f} s left"
            print(line, file=sys.stderr, flush=True)
            self._last_line = state.global_step

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()

    def _figures(self) -> str:
        parts = [f"loss {self._loss:.4f}"] if self._loss is not None else []
        if self._reward is not None:
            # The loss of what is rewarded stays about zero, whatever is learned.
            parts = [f"reward {self._reward:.3f}"]
        if self._tokens is not None:
            parts.append(f"{self._tokens / (time.perf_counter() - self._started):,.0f} tokens/s")
        return ", ".join([*parts, f"{self._memory_bytes() / GIB:.2f} GiB"])
