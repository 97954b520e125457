"""Makes the embedded encoder and decoder: `python -m hf_peft_recipes.embedded.make_rewriter [--out FOLDER]`.

A tiny T5 with the tokenizer of the embedded model beside it, really pretrained here on the same made-up text: it reads
what a user asks about a review and writes the answer. Like that model it knows how writers feel, and answers the
question of the data rows by chance.
"""

import argparse
import json
import math
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from . import MODEL_DIR, REWRITER_DIR
from .make import SEED, make_splits, review_texts
from .reviews import pretraining_documents

STEPS = 900
PAIRS_PER_STEP = 32
PEAK_LEARNING_RATE = 3e-3
WARMUP_STEPS = 50

Pair = tuple[str, str]


def pairs(seed: int) -> Iterator[Pair]:
    """An endless stream of what is asked about a review, and the answer.

    Args:
        seed: seed of every choice.
    """
    excluded = review_texts(make_splits(SEED))
    for document in pretraining_documents(Random(seed), excluded):
        if isinstance(document, str):
            continue
        turns = [message["content"] for message in document if message["role"] != "system"]
        yield turns[0], turns[1]


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> T5ForConditionalGeneration:
    """A small T5 in float32 with random weights.

    Args:
        tokenizer: gives the vocabulary size and the ids of the special tokens.
        seed: seed of the weights.
    """
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=96,
        d_kv=24,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    return T5ForConditionalGeneration(config)


def pretrain(model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, stream: Iterator[Pair]) -> float:
    """The mean loss of the last 50 steps, in nats a token, after training `model` in place on the answers.

    Args:
        model: model in float32.
        tokenizer: of the model.
        stream: endless pairs, as `pairs` makes them.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP_STEPS, 0.5 * (1 + math.cos(math.pi * step / STEPS)))
    )
    model.train()
    history: list[float] = []
    for step in range(STEPS):
        some = list(islice(stream, PAIRS_PER_STEP))
        source = tokenizer([asked for asked, _ in some], return_tensors="pt", padding=True)
        target = tokenizer([f"{answer}{tokenizer.eos_token}" for _, answer in some], return_tensors="pt", padding=True)
        labels = target.input_ids.masked_fill(target.attention_mask == 0, -100)
        loss = model(input_ids=source.input_ids, attention_mask=source.attention_mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        history.append(loss.item())
        if (step + 1) % 100 == 0:
            print(f"pretraining step {step + 1}/{STEPS}: loss {sum(history[-50:]) / 50:.3f}", flush=True)
    return sum(history[-50:]) / 50


def make(out: Path) -> dict[str, Any]:
    """Figures of what was made: parameters and last loss; the folder is replaced.

    Args:
        out: where model and tokenizer go.
    """
    # The order of additions, and so the last bits of the weights, depends on the number of threads.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    # It is given texts, not conversations.
    tokenizer.chat_template = None
    model = make_model(tokenizer, SEED)
    loss = pretrain(model, tokenizer, pairs(SEED + 3))
    shutil.rmtree(out, ignore_errors=True)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False,
        decoder_start_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model.to(torch.bfloat16).save_pretrained(out)
    # The weights are written readable to their owner only.
    (out / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(out)
    return {"parameters": model.num_parameters(), "loss": loss}


def main() -> None:
    """Reads the command line and makes the model."""
    parser = argparse.ArgumentParser(description="Make the embedded encoder and decoder from nothing.")
    parser.add_argument("--out", type=Path, default=REWRITER_DIR, help="folder of the model")
    print(json.dumps(make(parser.parse_args().out)))


if __name__ == "__main__":
    main()
