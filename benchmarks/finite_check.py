"""What looking at every step's numbers costs, measured within one run.

    python -m benchmarks.finite_check [--recipe lora] [--steps 200] [--output benchmarks/results/finite_check.jsonl]

Every second step of the run is not looked at. Two figures are kept: `share`, the processor's time that the guard's own
work takes, of that of all training, which other work on the machine does not touch; and `ratio`, the median step that
is looked at against the median one that is not, which on a GPU holds what waiting for it costs.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from hf_peft_recipes import get_recipe
from hf_peft_recipes.bench.cell import SCHEMA_VERSION, circumstances
from hf_peft_recipes.finite import FiniteGuard
from hf_peft_recipes.measure.clock import StepClock
from hf_peft_recipes.measure.facts import commit_of

RESULTS = Path(__file__).parent / "results" / "finite_check.jsonl"
WARMUP = 4
"""Steps that prepare what later ones find."""
SETTINGS: dict[str, Any] = {
    "eval_strategy": "no", "save_strategy": "no", "certify": "off", "evaluation.max_rows": 0, "logging_steps": 1000,
}  # fmt: skip


class _EverySecond(TrainerCallback):
    """Lets the guard look at every second step only, and takes the time of what it does."""

    def __init__(self) -> None:
        self.seconds = self.total = 0.0
        self.looked: list[bool] = []
        self._begun = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin to count once steps are as they will be."""
        self._begun = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count the step."""
        self.looked.append(state.global_step % 2 == 0)
        if state.global_step == WARMUP:
            self.seconds, self._begun = 0.0, time.process_time()
        self.total = time.process_time() - self._begun

    def switch(self, guard: FiniteGuard) -> None:
        """Put the switch and the watch before the guard's own methods."""

        def timed(work: Callable[..., None]) -> Callable[..., None]:
            def run(args: Any, state: Any, control: Any, **further: Any) -> None:
                if (state.global_step + 1) % 2 == 0:
                    start = time.process_time()
                    work(args, state, control, **further)
                    self.seconds += time.process_time() - start

            return run

        guard.on_step_begin = timed(guard.on_step_begin)  # type: ignore[method-assign]
        guard.on_pre_optimizer_step = timed(guard.on_pre_optimizer_step)  # type: ignore[method-assign]


def measure(recipe: str, steps: int) -> dict[str, Any]:
    """Return the line of a run: what it is, `share`, `ratio`, and how they came about.

    Args:
        recipe: by name, on the embedded model and data.
        steps: optimizer steps, half of which are looked at.
    """
    counter = _EverySecond()
    with tempfile.TemporaryDirectory() as scratch:
        # More epochs than the data have: steps are all alike.
        built = get_recipe(recipe, max_steps=steps, callbacks=[counter], **SETTINGS)
        trainer = built.build_trainer(Path(scratch) / "out")
        callbacks = trainer.callback_handler.callbacks
        counter.switch(next(one for one in callbacks if isinstance(one, FiniteGuard)))
        trainer.train()
        clock = next(one for one in callbacks if isinstance(one, StepClock))
    seconds = [step.seconds for step in clock.steps]
    sides = [
        [second for second, looked in list(zip(seconds, counter.looked, strict=True))[WARMUP:] if looked is side]
        for side in (True, False)
    ]
    medians = [statistics.median(side) for side in sides]
    return {
        "schema_version": SCHEMA_VERSION, "name": f"finite_check_{recipe}", "recipe": recipe, "steps": steps,
        # Half of the steps were looked at.
        "share": 2 * counter.seconds / counter.total, "ratio": medians[0] / medians[1],
        "step_seconds": {"looked_at": medians[0], "not_looked_at": medians[1]},
        "commit": commit_of(Path(__file__).parent), **circumstances(),
    }  # fmt: skip


def main(words: Sequence[str] | None = None) -> int:
    """Measure, and add the lines to the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", nargs="+", default=["lora", "full"])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--output", type=Path, default=RESULTS)
    asked = parser.parse_args(words)
    lines = [measure(recipe, asked.steps) for recipe in asked.recipe]
    asked.output.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for line in lines:
        print(f"{line['recipe']}: {line['share']:.3%} of the processor's time, steps {line['ratio']:.4f} times as long")
    return 0


if __name__ == "__main__":
    sys.exit(main())
