"""Losses that leap: told, and left to the reader."""

import statistics
import sys
from collections import deque
from typing import Any

from transformers import TrainerCallback

WINDOW = 32
"""Logged losses that the next one is held against."""
FEWEST = 8
"""Of them, before there is anything to hold against."""
OUTLIER = 3.5
"""Of the modified z-score, `0.6745 (loss - median) / MAD`: Iglewicz and Hoaglin 1993, «How to Detect and Handle
Outliers»."""
LEAST_RISE = 0.1
"""Share of the median below which a rise is none to speak of: where losses hardly differ, any is an outlier."""
KEPT = 100
"""Spikes that a run's record lists."""
_TO_DEVIATIONS = 0.6745


class LossSpikes(TrainerCallback):
    """Holds each loss that is logged against those before it; asks nothing of the GPU."""

    def __init__(self) -> None:
        self.found: list[dict[str, float]] = []
        """Step, loss, and the median and the score that it was held against, as a run's record has them."""
        self._last: deque[float] = deque(maxlen=WINDOW)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take up the losses that were logged before, where training goes on; those that will come again are not."""
        logged = [log["loss"] for log in state.log_history if "loss" in log]
        self._last = deque(logged, maxlen=WINDOW)
        self.found = [spike for spike in self.found if spike["step"] <= state.global_step]

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Tell of a loss that is far above those before it."""
        if not logs or "loss" not in logs:
            return
        loss = float(logs["loss"])
        if spike := spiked(loss, list(self._last)):
            self.found = [*self.found, {"step": state.global_step, "loss": loss, **spike}][-KEPT:]
            if state.is_world_process_zero:
                print(
                    f"warning: step {state.global_step}: the loss leapt to {loss:.4g}; "
                    f"the median of the {len(self._last)} before it is {spike['median']:.4g}",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
        self._last.append(loss)


def spiked(loss: float, before: list[float]) -> dict[str, float] | None:
    """Return the median of the losses before, and the score of one that leaps out of them; None where it does not.

    Args:
        loss: the newest.
        before: those that were logged last.
    """
    if len(before) < FEWEST:
        return None
    median = statistics.median(before)
    deviation = statistics.median(abs(one - median) for one in before)
    rise = loss - median
    if rise <= LEAST_RISE * abs(median):
        return None
    # Losses that are all the same have no deviation; whatever rises above them leaps.
    score = _TO_DEVIATIONS * rise / max(deviation, LEAST_RISE * abs(median) / OUTLIER, 1e-12)
    return {"median": median, "score": score} if score > OUTLIER else None
