"""What each faster path of `hf_peft_recipes.speed` brings to a step, and where the step's time goes.

    python -m benchmarks.paths [--recipe lora|qlora] [--turns 5] [--rows 2] [--out benchmarks/results/paths_RECIPE.json]

One trainer of the recipe in one process, and one batch: packed rows of conversations whose lengths are skewed. In
turns, each side takes a step on it (forward, back, clipping, optimizer): upstream's code, all paths, and all but each
one. What counts is the ratio within a turn, and what each keeps for the way back. Beside them stands the rate of the
products alone, the highest that this machine has shown. A profile of a step, operator by operator, is kept of
upstream's code and of all paths.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.gpu.kernels import read_profile
from benchmarks.peers.ceiling import token_flops
from benchmarks.peers.job import LORA
from benchmarks.peers.ratios import spread
from benchmarks.peers.work import ROWS, Shape, make_model, make_rows
from hf_peft_recipes.api import resolve_recipe
from hf_peft_recipes.bench.cell import overrides_of
from hf_peft_recipes.device import detect_device
from hf_peft_recipes.errors import RecipeError
from hf_peft_recipes.measure.facts import commit_of, host_facts, installed_versions
from hf_peft_recipes.plan.profiles import measure_cpu
from hf_peft_recipes.results import write_text
from hf_peft_recipes.speed import PATHS

SCHEMA_VERSION = 2
UPSTREAM, ALL = "upstream", "all paths"
_SECONDS = 0.5
"""For the products alone, each turn."""


def sides() -> dict[str, list[str]]:
    """Return what is compared, to the paths that it takes."""
    return {UPSTREAM: [], ALL: list(PATHS), **{f"all but {one}": [n for n in PATHS if n != one] for one in PATHS}}


class Step:
    """A step that can be taken again and again, by any side."""

    def __init__(self, recipe: str, folder: Path, rows: int, length: int) -> None:
        """Build the trainer, without a faster path, and take its first batch."""
        from hf_peft_recipes.assembly import prepare
        from hf_peft_recipes.preflight import RunRequest, examine

        options = {
            "model": str(folder / "model"), "dataset": str(folder / ROWS), "max_steps": 1, "max_length": length,
            "per_device_train_batch_size": 1, "gradient_accumulation_steps": rows, "data.validation_size": 0,
            "evaluation.max_rows": 0, "save_strategy": "no", "certify": "off", "speed": "off", **LORA,
        }  # fmt: skip
        resolved = resolve_recipe(recipe, overrides_of(options)).resolved
        request = RunRequest(output_dir=folder / "out", command="benchmarks.paths", progress=False)
        self.trainer: Any = prepare(resolved, request, examine(resolved, request)).trainer
        # As `train` begins: autocast is what accelerate puts around the model.
        self.trainer.create_optimizer()
        self.model, self.trainer.optimizer = self.trainer.accelerator.prepare(
            self.trainer.model, self.trainer.optimizer
        )
        self.model.train()
        self._plain = {module: vars(module).get("forward") for module in self.model.modules()}
        self._attention = self.model.config._attn_implementation
        batches = iter(self.trainer.get_train_dataloader())
        self.batches, self.items = self.trainer.get_batch_samples(batches, rows, self.model.device)
        self.trainer.current_gradient_accumulation_steps = rows

    @contextmanager
    def taking(self, paths: Sequence[str]) -> Iterator[None]:
        """Let the model take these paths, and none after that."""
        for name in paths:
            import_module(PATHS[name].module).install(self.model)
        try:
            yield
        finally:
            for module, forward in self._plain.items():
                vars(module).pop("forward", None)
                if forward is not None:
                    module.forward = forward
            self.model.set_attn_implementation(self._attention)

    def take(self) -> float:
        """Take a step; return the loss."""
        trainer, loss = self.trainer, 0.0
        for batch in self.batches:
            loss += float(trainer.training_step(self.model, dict(batch), self.items))
        trainer.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        trainer.optimizer.step()
        self.model.zero_grad()
        return loss

    def kept_bytes(self) -> int:
        """Return what autograd keeps of a row for the way back, weights left out, each piece of memory once."""
        from torch.autograd.graph import saved_tensors_hooks

        weights = {weight.untyped_storage().data_ptr() for weight in self.model.parameters()}
        kept: dict[int, Any] = {}

        def keep(tensor: Any) -> Any:
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor), self.trainer.compute_loss_context_manager():
            loss = self.trainer.compute_loss(self.model, dict(self.batches[0]), num_items_in_batch=self.items)
        total = sum(one.untyped_storage().nbytes() for pointer, one in kept.items() if pointer not in weights)
        del loss
        return total

    def work(self) -> dict[str, list[int]]:
        """Return what the batch comes to: its tokens, those with loss, and the squared lengths of its documents."""
        supervised = sum(int((batch["labels"] != -100).sum()) for batch in self.batches)
        squares, tokens = 0, 0
        for batch in self.batches:
            positions = batch["position_ids"].flatten().tolist()
            ends = [at for at, position in enumerate([*positions, 0]) if position == 0]
            squares += sum((end - start) ** 2 for start, end in pairwise(ends))
            tokens += len(positions)
        return {"tokens": [tokens], "supervised_tokens": [supervised], "squared_lengths": [squares]}


def measure(step: Step, turns: int) -> dict[str, Any]:
    """Return seconds of each side and the products' rate, turn by turn, its first loss and what it keeps of a row."""
    device, table = detect_device(), sides()
    seconds: dict[str, list[float]] = {name: [] for name in table}
    losses, kept, rates, names = dict[str, float](), dict[str, int](), list[float](), list(table)
    for turn in range(-1, turns):
        if turn >= 0:
            rates.append(measure_cpu(device, _SECONDS).product_flops(2 if device.bf16 else 4))
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            with step.taking(table[name]):
                if turn < 0:
                    kept[name] = step.kept_bytes()
                start = time.perf_counter()
                losses.setdefault(name, step.take())
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
        print(f"turn {turn + 1}/{turns}", file=sys.stderr, flush=True)
    return {"seconds": seconds, "losses": losses, "kept_bytes": kept, "product_flops": rates}


def profiled(step: Step, paths: Sequence[str]) -> dict[str, Any]:
    """Return the profile of one step."""
    from torch.profiler import ProfilerActivity, profile

    with step.taking(paths):
        step.take()
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            step.take()
    return read_profile(profiler).shown()


def summarize(recipe: str, folder: Path, work: dict[str, list[int]], found: dict[str, Any]) -> dict[str, Any]:
    """Return the ratios of each side's time to that of all paths, tokens/s, and the share of the products' rate."""
    ours, flops = found["seconds"][ALL], token_flops(folder / "model", recipe, work) * sum(work["tokens"])
    return {
        "time_to_all_paths": {
            name: spread([one / mine for one, mine in zip(seconds, ours, strict=True)])
            for name, seconds in found["seconds"].items()
        },
        "tokens_per_second": {
            name: spread([sum(work["tokens"]) / one for one in seconds]) for name, seconds in found["seconds"].items()
        },
        "share_of_product_rate": {
            name: spread([flops / one / rate for one, rate in zip(seconds, found["product_flops"], strict=True)])
            for name, seconds in found["seconds"].items()
        },
    }


def main() -> None:
    """Measure, and write the file."""
    parser = argparse.ArgumentParser(
        "benchmarks.paths", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shape = Shape()
    parser.add_argument("--recipe", choices=("lora", "qlora"), default="lora")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--rows", type=int, default=2, help="packed rows a step")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a packed row")
    parser.add_argument("--layers", type=int, default=shape.layers)
    parser.add_argument("--hidden", type=int, default=shape.hidden)
    parser.add_argument("--vocabulary", type=int, default=shape.vocabulary)
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/paths_RECIPE.json")
    options = parser.parse_args()
    out = options.out or Path(__file__).parent / "results" / f"paths_{options.recipe}.json"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_model(folder / "model", Shape(options.hidden, options.layers, options.vocabulary))
        make_rows(folder / ROWS, shape.rows)
        try:
            step = Step(options.recipe, folder, options.rows, options.length)
        except RecipeError as error:
            sys.exit(f"error: {error}")
        work, found = step.work(), measure(step, options.turns)
        content = {
            "schema_version": SCHEMA_VERSION,
            "settings": {key: value for key, value in vars(options).items() if key != "out"} | {"lora": LORA},
            "commit": commit_of(Path(__file__).parent),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "hardware": {
                **host_facts(), "device": detect_device().describe(), "threads": os.environ.get("OMP_NUM_THREADS")
            },
            "versions": installed_versions(),
            **work, **found, **summarize(options.recipe, folder, work, found),
            "profiles": {UPSTREAM: profiled(step, []), ALL: profiled(step, list(PATHS))},
        }  # fmt: skip
    write_text(out, json.dumps(content, indent=1) + "\n")
    print(json.dumps({key: content[key] for key in ("time_to_all_paths", "share_of_product_rate")}, indent=1))


if __name__ == "__main__":
    main()
