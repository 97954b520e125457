"""Runs every objective on public data, from the command line as a user starts it, and keeps a line for each run.

    python -m benchmarks.real_tasks [NAME …] [--data ../shared] [--steps 200]

The models are small: a pretrained Llama of 260 thousand parameters, the embedded encoder with decoder, and a BERT with
random weights that is made here. So the figures say that the path works and that something is learned, not how good a
recipe is. A run that has a line is left out; `--again` does it anew.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.matrix import read_lines
from hf_peft_recipes.bench.cell import SCHEMA_VERSION, circumstances
from hf_peft_recipes.measure.facts import commit_of
from hf_peft_recipes.metric_facts import TASK_METRICS

RESULTS = Path(__file__).parent / "results" / "real_tasks.jsonl"
WORDS = 4000
"""Entries of the made BERT's vocabulary."""


@dataclass(frozen=True)
class Run:
    """One run: what stands behind `train`. `{data}`, `{llama}`, `{bert}` and `{pairs}` are filled in."""

    words: str
    rate: float
    """Of learning: small models need larger ones than recipes are made for."""
    times: int = 1
    """How many times as many steps it is given: weights that begin at random need more."""


RUNS = {
    "classify_decoder": Run("lora+classify --model {llama} --dataset {data}/rt-polarity", 2e-3),
    "classify_encoder": Run("full+classify --model {bert} --dataset {data}/rt-polarity", 1e-3, 4),
    "tag_decoder": Run("lora+tag --model {llama} --dataset {data}/ner", 3e-3),
    "tag_encoder": Run("full+tag --model {bert} --dataset {data}/ner", 2e-3, 4),
    "seq2seq": Run(
        "full+seq2seq --dataset {data}/wiki-split/test.tsv --data.columns.prompt 1 --data.columns.completion 2"
        " --max_length 384 --max_truncated 50%",
        2e-3,
    ),
    "sft": Run("lora+sft --model {llama} --dataset {data}/gsm8k --evaluation.task text", 2e-3),
    "grpo": Run("lora+grpo --model {llama} --dataset {data}/gsm8k --rewards numeric --max_completion_length 64", 1e-4),
    "pretrain": Run("lora+pretrain --model {llama} --dataset {data}/tinyshakespeare.txt", 2e-3),
    "dpo": Run("lora+dpo --model {llama} --dataset {pairs} --data.overlong drop --data.max_dropped 30%", 5e-4),
    "kto": Run("lora+kto --model {llama} --dataset {pairs} --data.overlong drop --data.max_dropped 30%", 5e-4),
    "orpo": Run("lora+orpo --model {llama} --dataset {pairs} --data.overlong drop --data.max_dropped 30%", 1e-3),
    "reward": Run("lora+reward --model {llama} --dataset {pairs} --data.overlong drop --data.max_dropped 30%", 1e-3),
}


def make_bert(texts: Sequence[str], folder: Path) -> None:
    """Write a small BERT with random weights, and a tokenizer that is learned from the texts.

    Args:
        texts: what the words come from.
        folder: where it goes.
    """
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    words.normalizer, words.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    words.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=WORDS, special_tokens=special))
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=words.get_vocab_size(), hidden_size=96, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=192, max_position_embeddings=256,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)


def make_pairs(source: Path, target: Path) -> None:
    """Write preference pairs: the answer to a question, against the answer to another one, whose number is wrong.

    Args:
        source: questions and answers, as JSON lines.
        target: the file to write.
    """
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    with target.open("w", encoding="utf-8") as file:
        for row, other in zip(rows, [*rows[1:], rows[0]], strict=True):
            if row["answer"].rpartition("####")[2] != other["answer"].rpartition("####")[2]:
                pair = {"prompt": row["question"], "chosen": row["answer"], "rejected": other["answer"]}
                file.write(json.dumps(pair, ensure_ascii=False) + "\n")


def run(name: str, places: dict[str, Path], steps: int, scratch: Path) -> dict[str, Any]:
    """Return the line of one run.

    Args:
        name: one of `RUNS`.
        places: of data and models.
        steps: of training.
        scratch: where the run's folder goes.
    """
    words = [*shlex.split(RUNS[name].words.format(**places)), "--max_steps", steps, "--learning_rate", RUNS[name].rate]
    words += ["--output_dir", scratch / name, "--evaluation.max_rows", 200, "--eval_strategy", "no", "--json"]
    command = [sys.executable, "-m", "hf_peft_recipes", "train", *map(str, words)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    told = {"name": name, "steps": steps, "command": RUNS[name].words, "rate": RUNS[name].rate}
    if finished.returncode:
        return {**told, "status": "failed", "detail": finished.stderr.strip().splitlines()[-1]}
    record = json.loads(finished.stdout)
    metrics = record["metrics"]
    task = next((metric for metric in TASK_METRICS if metric in metrics["after"]), "loss")
    return {
        **told,
        "status": "done",
        "task": metrics["task"],
        "metric": task,
        "rows": metrics["rows"],
        "before": metrics["before"],
        "after": metrics["after"],
        "intervals": metrics["intervals"],
        "certificate": record["certificate"]["status"],
        "proof": {key: record["proof"][key] for key in ("trainable_tensors", "proved_tensors")},
        "train_seconds": record["measured"]["train_seconds"],
    }


def main() -> None:
    """Read the command line, run, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"runs; all by default: {', '.join(RUNS)}")
    parser.add_argument("--data", type=Path, default=Path("../shared"), help="where data/ and models/ are")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--again", action="store_true", help="run what has a line too")
    options = parser.parse_args()
    data, known = options.data / "data", read_lines(options.out)
    told = {"schema_version": SCHEMA_VERSION, **circumstances(), "commit": commit_of(Path(__file__).parent)}
    with TemporaryDirectory() as folder:
        scratch = Path(folder)
        places = {
            "data": data, "llama": options.data / "models" / "stories260K", "bert": scratch / "bert",
            "pairs": scratch / "pairs.jsonl",
        }  # fmt: skip
        texts = [(data / "rt-polarity" / f"{side}.txt").read_text(encoding="utf-8") for side in ("pos", "neg")]
        texts.append((data / "ner" / "wnut17.train.conll").read_text(encoding="utf-8"))
        make_bert([line for text in texts for line in text.splitlines()], places["bert"])
        make_pairs(data / "gsm8k" / "train.jsonl", places["pairs"])
        for name in options.names or RUNS:
            if name in known and not options.again:
                continue
            line = run(name, places, options.steps * RUNS[name].times, scratch) | told
            metric = line.get("metric", "")
            figures = [f"{line[side].get(metric, float('nan')):.4g}" for side in ("before", "after") if side in line]
            print(f"{name}: {line['status']} {metric} {' to '.join(figures)}{line.get('detail', '')}", file=sys.stderr)
            options.out.parent.mkdir(parents=True, exist_ok=True)
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
