"""A run that is killed and resumed again and again: it ends with the very weights of one that was let alone.

    python -m benchmarks.soak [--cycles 50] [--seed 0] [--out benchmarks/results/soak.json]

Each cycle is a fork of this process, which has imported everything, and ends by SIGKILL at a moment drawn by the seed:
while it loads, in a step, or while a checkpoint is written. After the last kill the run is let come to its end.
"""

import argparse
import hashlib
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.forks import Ended, forked
from hf_peft_recipes.bench.cell import SCHEMA_VERSION, circumstances
from hf_peft_recipes.embedded import DATA_DIR
from hf_peft_recipes.errors import RecipeError
from hf_peft_recipes.measure.facts import commit_of
from hf_peft_recipes.results import write_text

OUT = Path(__file__).parent / "results" / "soak.json"
EVERY = 3
"""Steps from one checkpoint to the next."""
_STEPS_A_CYCLE = 3
"""Planned for each cycle: more than it gains on average, so that the run is not at its end before the last kill."""
_ROWS = 48
_SETTINGS: dict[str, Any] = {
    "max_length": 64, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "save_strategy": "steps",
    "save_steps": EVERY, "save_total_limit": 2, "eval_strategy": "no", "certify": "off", "logging_steps": 1,
    "learning_rate": 1e-3, "r": 2,
    # What is drawn at each step must come back with the checkpoint.
    "lora_dropout": 0.1, "data.validation_size": 0.0,
}  # fmt: skip
_LONGEST_SECONDS = 3600.0
"""That a run may take which nobody kills."""
_LOADING_SECONDS, _STEP_SECONDS = 0.6, 0.25
"""A kill comes within so long after a fork's begin, or after the step that it waits for: a checkpoint takes as long."""


@dataclass(frozen=True)
class Kill:
    """One cycle's end."""

    resumed_from: int
    """Step of the checkpoint that it went on from; 0 at the begin."""
    reached: int
    """Steps that it had done."""
    kept: int
    """Step of the newest good checkpoint that it left."""


def soak(folder: Path, cycles: int, seed: int, told: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Return the kills, the steps that had to be done again, and whether weights and losses are the same in the end.

    Args:
        folder: for both runs; they stay there.
        cycles: how many kills.
        seed: of their moments.
        told: is called with a line a cycle.

    Raises:
        RecipeError: a run did not go on, or was at its end before the last kill.
    """
    from hf_peft_recipes.checkpoints import newest_good

    steps, draw, kills = cycles * _STEPS_A_CYCLE + EVERY, random.Random(seed), []
    alone, killed = folder / "alone", folder / "killed"
    _require(forked(lambda: _train(alone, steps), limit_seconds=_LONGEST_SECONDS))
    resumed_from, begun = 0, False
    for cycle in range(cycles):
        reached = _cycle(killed, steps, begun, resumed_from, draw)
        begun = (killed / "recipe.yaml").is_file()
        good, skipped = newest_good(killed)
        kept = good.step if good else 0
        if skipped:
            raise RecipeError(f"after kill {cycle + 1}: {skipped[0].path.name}: {skipped[0].problems[0]}")
        kills.append(Kill(resumed_from, max(reached, resumed_from), kept))
        told(f"{cycle + 1}: from step {resumed_from} to {kills[-1].reached}, {kept} is kept")
        resumed_from = kept
    _require(forked(lambda: _train(killed, steps, resume=begun), limit_seconds=_LONGEST_SECONDS))
    ends = [_end(alone), _end(killed)]
    return {
        "cycles": cycles, "seed": seed, "steps": steps, "save_steps": EVERY, "kills": [asdict(kill) for kill in kills],
        "steps_lost": sum(max(0, kill.reached - kill.kept) for kill in kills),
        "same_weights": ends[0]["weights"] == ends[1]["weights"], "same_losses": ends[0]["losses"] == ends[1]["losses"],
        "left_over": sorted(ends[1]["names"] - ends[0]["names"]),
    }  # fmt: skip


def _cycle(folder: Path, steps: int, begun: bool, start: int, draw: random.Random) -> int:
    """Let the run go on until it is killed; return the steps that it had done then."""
    # -1: while it loads.
    wait_for, share = draw.randrange(-1, EVERY + 2), draw.random()
    reading, writing = os.pipe()
    reached = start

    def watch(child: int) -> None:
        nonlocal reached
        if wait_for < 0:
            time.sleep(share * _LOADING_SECONDS)
        else:
            reached = _await_step(reading, start, start + wait_for)
            time.sleep(share * _STEP_SECONDS)
        os.kill(child, signal.SIGKILL)

    try:
        ended = forked(lambda: _train(folder, steps, resume=begun, step_done=writing), watch)
        os.set_blocking(reading, False)
        reached = max([reached, *_steps_told(reading)])
    finally:
        os.close(reading)
        os.close(writing)
    if ended.code != -signal.SIGKILL:
        raise RecipeError(f"the run ended with {ended.code} before it was killed: {ended.said[-2000:]}")
    return reached


def _await_step(reading: int, reached: int, wanted: int) -> int:
    """Return the last step that is told of, once it is the wanted one; at once where a fork tells nothing for long."""
    while reached < wanted:
        if not select.select([reading], [], [], 60.0)[0]:
            return reached
        reached = max([reached, *_steps_told(reading)])
    return reached


def _steps_told(reading: int) -> list[int]:
    try:
        told = os.read(reading, 4096)
    except BlockingIOError:
        return []
    return [int.from_bytes(told[at : at + 4], "little") for at in range(0, len(told), 4)]


def _train(folder: Path, steps: int, resume: bool = False, step_done: int | None = None) -> None:
    from transformers import TrainerCallback

    from hf_peft_recipes import get_recipe

    class TellSteps(TrainerCallback):
        """Writes each step, once it is done, into a pipe."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if step_done is not None:
                os.write(step_done, int(state.global_step).to_bytes(4, "little"))

    lines = (DATA_DIR / "train.jsonl").read_text(encoding="utf-8").splitlines()[:_ROWS]
    rows = [json.loads(line) for line in lines]
    recipe = get_recipe("lora", dataset=rows, **_SETTINGS, max_steps=steps, callbacks=[TellSteps()])
    recipe.train(folder, resume=resume, progress=False)


def _end(folder: Path) -> dict[str, Any]:
    record = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    weights = hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
    return {"weights": weights, "losses": record["loss_curve"], "names": {path.name for path in folder.iterdir()}}


def _require(ended: Ended) -> None:
    if ended.code:
        raise RecipeError(f"a run ended with {ended.code}: {ended.said[-2000:]}")


def warm_up(folder: Path) -> None:
    """Import what runs need, by letting one go in this process; forks have it then."""
    _train(folder / "first", EVERY)
    shutil.rmtree(folder / "first")


def main() -> None:
    """Kill and resume, write the file; end with 1 where anything is not the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    started, commit = time.perf_counter(), commit_of(Path(__file__).parent)
    try:
        with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
            warm_up(Path(scratch))
            found = soak(Path(scratch), options.cycles, options.seed, lambda line: print(line, file=sys.stderr))
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    found |= {"seconds": time.perf_counter() - started, **circumstances(), "commit": commit}
    write_text(options.out, json.dumps({"schema_version": SCHEMA_VERSION, **found}, indent=1) + "\n")
    same = found["same_weights"] and found["same_losses"] and not found["left_over"]
    print(f"{options.cycles} kills, {found['steps_lost']} steps done again; the same end: {'yes' if same else 'no'}")
    sys.exit(not same)


if __name__ == "__main__":
    main()
