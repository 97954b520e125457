"""Our `lora` against plain TRL: the same model, rows, LoRA and optimizer steps' worth of work, each in a fresh process.

    python -m benchmarks.against_trl [--repeats 3] [--steps 6] [--out benchmarks/results/against_trl.json]

Contenders take turns (A B C A B C …), since these machines drift; what counts is the ratio within one turn. The model
has the shape of a 135M Llama (hidden 576, 30 layers, vocabulary 49,152) with random weights, or fewer `--layers`; the
rows have skewed lengths up to about 1,000 tokens. Tokens that are padding are not counted.
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
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hf_peft_recipes.device import detect_device
from hf_peft_recipes.embedded import MODEL_DIR

CONTENDERS = ("ours", "trl_best", "trl_defaults")
FIGURES = ("tokens_per_second", "peak_memory_bytes", "first_step_seconds")


def make_model(folder: Path, layers: int) -> None:
    """Write a Llama with random weights into `folder`, with the embedded model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9, num_key_value_heads=3,
        vocab_size=49152, max_position_embeddings=2048, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_rows(path: Path, count: int) -> None:
    """Write prompt-completion rows whose lengths are skewed: a median of about 90 tokens, a few of about 1,000."""
    draw = random.Random(0)
    words = ["the soup", "was", "cold", "and", "the waiter", "polite", "although", "we", "waited", "long"]
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            length = min(int(draw.lognormvariate(3.6, 0.9)), 420)
            text = " ".join(draw.choice(words) for _ in range(length))
            half = len(text) // 2
            file.write(json.dumps({"prompt": text[:half], "completion": text[half:] or "x"}) + "\n")


def measure(contender: str, model: Path, rows: Path, steps: int) -> dict[str, float]:
    """Return what one run of the contender cost, in a process of its own."""
    if contender == "ours":
        with tempfile.TemporaryDirectory() as folder:
            options = {
                "--model": model, "--dataset": rows, "--output_dir": f"{folder}/out", "--max_steps": steps,
                "--data.validation_size": 0, "--evaluation.max_rows": 0, "--save_strategy": "no",
            }  # fmt: skip
            words = [str(word) for option in options.items() for word in option]
            _run([sys.executable, "-m", "hf_peft_recipes", "train", "lora", *words, "--json"])
            record = json.loads((Path(folder) / "out" / "result.json").read_text(encoding="utf-8"))
        return {**record["measured"], "last_loss": record["loss_curve"][-1]["loss"]}
    flags = contender.removeprefix("trl_")
    command = [sys.executable, "-m", "benchmarks.peers.plain_trl", str(model), str(rows), str(steps), flags]
    measured: dict[str, float] = json.loads(_run(command).strip().splitlines()[-1])
    return measured


def _run(command: list[str]) -> str:
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        sys.exit(f"{' '.join(command)}\n{finished.stderr}")
    return finished.stdout


def ratios(turns: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Return, for every peer and figure, the median, lowest and highest ratio of ours to the peer's, turn by turn."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for peer in CONTENDERS[1:]:
        table[peer] = {}
        for figure in FIGURES:
            found = [turn["ours"][figure] / turn[peer][figure] for turn in turns]
            table[peer][figure] = {"median": statistics.median(found), "low": min(found), "high": max(found)}
    return table


def main() -> None:
    """Measure, print the ratios, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "against_trl.json")
    options = parser.parse_args()
    turns: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        model, rows = Path(scratch) / "model", Path(scratch) / "rows.jsonl"
        make_model(model, options.layers)
        make_rows(rows, options.rows)
        for turn in range(options.repeats):
            order = CONTENDERS[turn % 3 :] + CONTENDERS[: turn % 3]
            turns.append({name: measure(name, model, rows, options.steps) for name in order})
            print(json.dumps(turns[-1]), flush=True)
            time.sleep(1)
    # Imported late: it brings transformers along, and the contenders are to have the machine for themselves.
    from hf_peft_recipes.measure import host_facts, installed_versions

    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    result = {
        "what": "ratios of ours to the peer's; above 1 is more",
        "shape": {"layers": options.layers, "hidden": 576, "vocabulary": 49152, "rows": options.rows},
        "steps": options.steps,
        "ratios": ratios(turns),
        "turns": turns,
        "hardware": {**host_facts(), "device": detect_device().describe(), "threads": os.cpu_count()},
        "versions": installed_versions(),
        "commit": commit,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result["ratios"], indent=2))


if __name__ == "__main__":
    main()
