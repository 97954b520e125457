"""What the planner predicts for a CPU against what real runs take: recipes × sizes × lengths × checkpointing.

    python -m benchmarks.plan_grid [--cells lora-s-512-off …] [--steps 3] [--out benchmarks/results/plan_cpu.json]
    python -m benchmarks.plan_grid --compare        # what is predicted now against what was measured before

Every cell is a `train` in a fresh process, on a Llama with random weights, over packed rows that are full to the last
token. A cell that stands in the file already is not run again. One JSON line a cell: what was measured, on what, and
what was predicted. Peaks are those of training, `measured.peak_memory_bytes` of the run's `result.json`; the process's
own peak, loading included, is watched from outside. Time depends on what else the machine does: memory does not.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from hf_peft_recipes import get_recipe
from hf_peft_recipes.device import detect_device
from hf_peft_recipes.embedded import MODEL_DIR

SIZES = {
    "s": {"hidden_size": 256, "layers": 4, "intermediate_size": 688, "heads": 8, "kv_heads": 4, "vocabulary": 4096},
    "m": {"hidden_size": 384, "layers": 8, "intermediate_size": 1024, "heads": 6, "kv_heads": 3, "vocabulary": 16384},
    "l": {"hidden_size": 576, "layers": 12, "intermediate_size": 1536, "heads": 9, "kv_heads": 3, "vocabulary": 32768},
}
"""8, 39 and 123 MB in bfloat16."""
RECIPES, LENGTHS = ("lora", "qlora", "full"), (128, 512, 1024)
WITHIN = 0.10


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    recipe: str
    size: str
    length: int
    checkpointing: bool
    ragged: bool = False
    """Whether the documents are of all lengths, instead of one a row."""

    @property
    def name(self) -> str:
        """`lora-s-512-off`."""
        ending = f"{'on' if self.checkpointing else 'off'}{'-ragged' if self.ragged else ''}"
        return f"{self.recipe}-{self.size}-{self.length}-{ending}"

    def overrides(self, model: Path, rows: Path, steps: int) -> dict[str, Any]:
        """Return the run's options; what is measured is training, so nothing else is done."""
        return {
            "model": str(model), "dataset": str(rows), "max_length": self.length, "max_steps": steps,
            "activation_checkpointing": self.checkpointing, "data.validation_size": 0, "evaluation.max_rows": 0,
            "eval_strategy": "no", "save_strategy": "no",
        }  # fmt: skip


def cells() -> Iterator[Cell]:
    """Yield the cells of the grid, small ones first."""
    for size in SIZES:
        for length in LENGTHS:
            for recipe in RECIPES:
                for checkpointing in (False, True):
                    yield Cell(recipe, size, length, checkpointing)
    for length in LENGTHS[1:]:
        yield Cell("lora", "s", length, checkpointing=False, ragged=True)


def make_model(folder: Path, size: str) -> None:
    """Write a Llama with random weights into `folder`, with the embedded model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    shape, tokenizer = SIZES[size], AutoTokenizer.from_pretrained(MODEL_DIR)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=shape["hidden_size"], intermediate_size=shape["intermediate_size"],
        num_hidden_layers=shape["layers"], num_attention_heads=shape["heads"], num_key_value_heads=shape["kv_heads"],
        vocab_size=shape["vocabulary"], max_position_embeddings=2048, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_rows(path: Path, count: int, length: int, ragged: bool) -> None:
    """Write plain text of which every row is so many tokens long, its end token included; ragged ones are up to that.

    Full rows are what a plan without data assumes. Documents of many lengths cost more: oneDNN keeps a kernel for every
    shape of a product that it has met.
    """
    from transformers import AutoTokenizer

    tokenizer, draw = AutoTokenizer.from_pretrained(MODEL_DIR), random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for row in range(count):
            wanted = draw.randint(8, length) if ragged else length
            text = f"{row} " + "".join(draw.choice("abcdefghij klmno") for _ in range(3 * wanted))
            while (tokens := len(tokenizer(text).input_ids)) != wanted - 1:
                # Cutting may join or part tokens at the end, so it is done by a letter where it gets close.
                text = text[: -max(1, tokens - wanted)] if tokens >= wanted else text + draw.choice("bdfhk")
            file.write(json.dumps({"text": text}) + "\n")


def measure(cell: Cell, model: Path, rows: Path, steps: int) -> dict[str, Any]:
    """Return what one run of the cell took, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        options = cell.overrides(model, rows, steps)
        words = [
            word
            for key, value in options.items()
            for word in (f"--{key}", str(value).lower() if isinstance(value, bool) else str(value))
        ]
        command = [sys.executable, "-m", "hf_peft_recipes", "train", cell.recipe, *words]
        process = subprocess.Popen(
            [*command, "--output_dir", f"{folder}/out"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        peak, watched = 0, psutil.Process(process.pid)
        while process.poll() is None:
            try:
                peak = max(peak, watched.memory_info().rss)
            except psutil.Error:
                break
            time.sleep(0.02)
        printed = process.communicate()[0]
        if process.returncode:
            sys.exit(f"{' '.join(command)}\n{printed}")
        record = json.loads((Path(folder) / "out" / "result.json").read_text(encoding="utf-8"))
    measured = record["measured"]
    return {
        "peak_memory_bytes": measured["peak_memory_bytes"],
        "process_peak_bytes": peak,
        "tokens_per_second": measured["tokens_per_second"],
        "parameters": record["parameters"],
        "speed": record["speed"],
        "rows": record["data"]["ledger"]["rows"]["kept"],
        "tokens": record["data"]["ledger"]["tokens"]["total"],
        "versions": record["versions"],
        "load_average": os.getloadavg()[0],
    }


def predict(cell: Cell, model: Path, steps: int) -> dict[str, Any]:
    """Return the cell's plan for this machine."""
    options = cell.overrides(model, Path("rows.jsonl"), steps)
    if not cell.ragged:
        # Without data a plan takes every row for one document of the full length.
        del options["dataset"]
    plan = get_recipe(cell.recipe, **options).plan()
    return {"parts": plan.parts, "phases": plan.phases, "tokens_per_second": plan.tokens_per_second}


def compare(lines: list[dict[str, Any]]) -> None:
    """Print every cell's error and what they come to."""
    errors = []
    for line in lines:
        predicted, peak = line["predicted"]["phases"]["train"], line["measured"]["peak_memory_bytes"]
        errors.append(predicted / peak - 1)
        print(
            f"{line['name']:<20} {peak / 2**20:8.0f} MiB measured {predicted / 2**20:8.0f} predicted {errors[-1]:+7.1%}"
        )
    if errors:
        inside = sum(abs(error) <= WITHIN for error in errors)
        print(
            f"{inside} of {len(errors)} within {WITHIN:.0%}; worst {max(errors, key=abs):+.1%}, "
            f"mean of amounts {statistics.mean(map(abs, errors)):.1%}"
        )


def main() -> None:
    """Measure what is missing, write a line a cell, print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", help="names, as lora-s-512-off; all by default")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "plan_cpu.json")
    parser.add_argument("--compare", action="store_true", help="predict again, measure nothing, write the file anew")
    options = parser.parse_args()
    lines = [json.loads(line) for line in options.out.read_text("utf-8").splitlines()] if options.out.is_file() else []
    here = Path(__file__).parent
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False
    ).stdout.strip()
    with tempfile.TemporaryDirectory() as scratch:
        for size in SIZES:
            make_model(Path(scratch) / size, size)
        for line in lines if options.compare else ():
            cell = Cell(**line["cell"])
            line["predicted"] = predict(cell, Path(scratch) / cell.size, line["steps"])
            line["predicted_at"] = commit
        have = {line["name"] for line in lines}
        for cell in () if options.compare else cells():
            if cell.name in have or (options.cells and cell.name not in options.cells):
                continue
            model = Path(scratch) / cell.size
            rows = Path(scratch) / "rows.jsonl"
            make_rows(rows, 8 * options.steps * (2 if cell.ragged else 1), cell.length, cell.ragged)
            found = measure(cell, model, rows, options.steps)
            line = {
                "name": cell.name, "cell": asdict(cell), "shape": SIZES[cell.size], "steps": options.steps,
                "measured": {key: value for key, value in found.items() if key != "versions"},
                "predicted": predict(cell, model, options.steps),
                "hardware": {"device": detect_device().describe(), "threads": os.environ.get("OMP_NUM_THREADS")},
                "versions": found["versions"], "commit": commit, "predicted_at": commit,
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
            }  # fmt: skip
            lines.append(line)
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            compare([line])
    if options.compare:
        options.out.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    compare(lines)


if __name__ == "__main__":
    main()
