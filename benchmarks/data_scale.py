"""Preparing data: rows a second beside TRL's own preparation, and memory as the number of rows grows.

    python -m benchmarks.data_scale [--rows 10000 100000 1000000] [--against 50000] [--out FILE]

The rows are chats of one to three exchanges, about 500 bytes each. Every figure is of a fresh process. Peak memory is
that of the process and its workers together, without pages of files that are only mapped.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from hf_peft_recipes.device import detect_device
from hf_peft_recipes.embedded import MODEL_DIR

WORDS = (
    "the", "soup", "was", "cold", "and", "the", "waiter", "polite", "although", "we", "waited", "long", "before",
    "anyone", "took", "our", "order",
)  # fmt: skip


def make_chats(path: Path, number: int) -> None:
    """Write so many chats of one to three exchanges."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for row in range(number):
            turns = []
            for exchange in range(draw.randint(1, 3)):
                said = [" ".join(draw.choices(WORDS, k=draw.randint(5, 25))) for _ in range(2)]
                turns.append({"role": "user", "content": f"{row}.{exchange} {said[0]}?"})
                turns.append({"role": "assistant", "content": f"{said[1]}."})
            file.write(json.dumps({"messages": turns}) + "\n")


def ours(path: Path) -> dict[str, float]:
    """Prepare the file as a run does: look at every row, tokenise, pack; return the seconds of each part."""
    from hf_peft_recipes import get_recipe
    from hf_peft_recipes.preflight import RunRequest, examine_data
    from hf_peft_recipes.rows import tokenize

    overrides: dict[str, Any] = {"dataset": str(path), "data.validation_size": 0, "evaluation.max_rows": 0}
    recipe = get_recipe("lora", **overrides).resolved
    _import_all()
    request = RunRequest(dry_run=True)
    start = time.perf_counter()
    examples = examine_data(recipe, request)
    looked = time.perf_counter()
    data = tokenize(recipe, request, examples).rows
    tokenized = time.perf_counter()
    _trainer(data.train, packing_strategy="bfd_split")
    packed = time.perf_counter()
    return {"look": looked - start, "tokenize": tokenized - looked, "pack": packed - tokenized, "total": packed - start}


def trl(path: Path, processes: str) -> dict[str, float]:
    """Prepare the file as TRL does, given the same flags; return the seconds."""
    from datasets import load_dataset

    _import_all()
    start = time.perf_counter()
    rows = load_dataset("json", data_files=str(path), split="train", cache_dir=str(path.parent / f"cache{processes}"))
    _trainer(rows, packing_strategy="bfd_split", dataset_num_proc=int(processes))
    return {"total": time.perf_counter() - start}


def _import_all() -> None:
    """Import what either side needs: a run needs it anyway, and its seconds are no part of preparing data."""
    import peft  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401
    from trl import SFTConfig, SFTTrainer  # noqa: F401


def _trainer(rows: Any, **options: Any) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder, packing=True, max_length=512, use_cpu=True, report_to="none", bf16=False, **options
        )
        tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
        SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(MODEL_DIR), args=arguments, train_dataset=rows,
            processing_class=tokenizer,
        )  # fmt: skip


def measured(words: list[str], folder: Path) -> dict[str, Any]:
    """Return what a fresh process printed, with its peak memory and processor time, workers included."""
    environment = {**os.environ, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.data_scale", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    peak = _Peak(process.pid)
    printed, errors = process.communicate()
    if process.returncode:
        sys.exit(errors)
    figures: dict[str, Any] = json.loads(printed.strip().splitlines()[-1])
    return {**figures, "peak_memory_bytes": peak.stop(), "process_seconds": time.perf_counter() - started}


class _Peak:
    """Watches the memory of a process and of what it starts: what each holds for itself, mapped files left out."""

    def __init__(self, pid: int) -> None:
        self._process, self._bytes, self._done = psutil.Process(pid), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            try:
                family = [self._process, *self._process.children(recursive=True)]
                self._bytes = max(self._bytes, sum(_anonymous_bytes(one) for one in family))
            except psutil.NoSuchProcess:
                continue

    def stop(self) -> int:
        """Return the peak in bytes."""
        self._done.set()
        self._thread.join()
        return self._bytes


def _anonymous_bytes(process: psutil.Process) -> int:
    memory = process.memory_info()
    return int(memory.rss - memory.shared)


def main() -> None:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--against", type=int, default=50_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "data_scale.json")
    parser.add_argument("--work", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        way, path, *rest = options.work
        print(json.dumps(ours(Path(path)) if way == "ours" else trl(Path(path), *rest)))
        return
    curve, turns = [], []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for number in options.rows:
            make_chats(folder / "chats.jsonl", number)
            first = measured(["--work", "ours", str(folder / "chats.jsonl")], folder)
            second = measured(["--work", "ours", str(folder / "chats.jsonl")], folder)
            curve.append({"rows": number, "rows_per_second": number / first["total"], "first": first, "second": second})
            print(json.dumps(curve[-1]), flush=True)
        make_chats(folder / "chats.jsonl", options.against)
        for turn in range(2):
            words = str(folder / "chats.jsonl")
            home = folder / f"turn{turn}"
            seconds = {
                "ours": measured(["--work", "ours", words], home)["total"],
                "trl": measured(["--work", "trl", words, "1"], home)["total"],
                "trl_two_processes": measured(["--work", "trl", words, "2"], home)["total"],
            }
            turns.append(seconds)
            for path in folder.glob("cache*"):
                subprocess.run(["rm", "-r", str(path)], check=True)
            print(json.dumps(seconds), flush=True)
    from hf_peft_recipes.measure.facts import host_facts, installed_versions

    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    result = {
        "what": "rows per second and peak memory of preparing data; ratios of TRL's seconds to ours, above 1 is faster",
        "curve": curve,
        "against": {"rows": options.against, "seconds": turns},
        "ratios": {
            peer: [turn[peer] / turn["ours"] for turn in turns] for peer in ("trl", "trl_two_processes")
        },
        "hardware": {**host_facts(), "device": detect_device().describe()},
        "versions": installed_versions(),
        "commit": commit,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result["ratios"], indent=2))


if __name__ == "__main__":
    main()
