"""Makes the embedded model and data from nothing: `python -m hf_peft_recipes.embedded.make [--out FOLDER]`.

Everything is written by the seeded generator in `reviews.py`; no text is copied from anywhere. Three steps:

1. `data/`: three splits of `prompt` and `completion` rows, a short review and whether it is positive or negative.
2. The tokenizer and chat template of `model/`.
3. `model/`: a tiny Llama, really pretrained here, on reviews and on conversations about reviews. It learns what the
   words mean from reviews whose sentences agree and from how their writers feel ("happy", "annoyed"). The question of
   the data rows is answered at random in that text, so the model knows the form of an answer but not which one is true:
   before fine-tuning it is right about half the time. No review of any of the three splits occurs in the pretraining
   text.
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
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .reviews import LABELS, Message, ReviewWriter, pretraining_documents, question

SEED = 20
SPLIT_ROWS = {"train": 1200, "validation": 200, "test": 200}
SPECIAL_TOKENS = ("<|pad|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
VOCABULARY_SIZE = 1216
CONTEXT_LENGTH = 512
WINDOW_LENGTH = 256
WINDOWS_PER_STEP = 8
STEPS = 600
PEAK_LEARNING_RATE = 1e-3
WARMUP_STEPS = 50

# Nothing stands between a turn's tokens, so a prompt is an exact token prefix of the same turns with the answer.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<|assistant|>' }}{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def make_splits(seed: int) -> dict[str, list[dict[str, str]]]:
    """The rows of each split, half of them positive, no review text twice; only test uses held-out pairs of words.

    Args:
        seed: seed of the generator; the same seed gives the same rows.
    """
    random = Random(seed)
    seen: set[str] = set()
    splits: dict[str, list[dict[str, str]]] = {}
    for split, row_count in SPLIT_ROWS.items():
        writer = ReviewWriter(random, held_out_pairs=split == "test")
        rows: list[dict[str, str]] = []
        while len(rows) < row_count:
            label = len(rows) % 2
            # A quarter of the test rows must have a held-out pair, the others may.
            needs_held_out = split == "test" and len(rows) < row_count // 4
            review = writer.review(label)
            words = len(review.text.split())
            if not 5 <= words <= 60 or review.text in seen or (needs_held_out and not review.held_out):
                continue
            seen.add(review.text)
            rows.append({"prompt": question(review.text), "completion": LABELS[label]})
        random.shuffle(rows)
        splits[split] = rows
    return splits


def review_texts(splits: dict[str, list[dict[str, str]]]) -> set[str]:
    """The review texts of all splits, without the question around them."""
    before, after = question("|").split("|")
    return {row["prompt"].removeprefix(before).removesuffix(after) for rows in splits.values() for row in rows}


def make_tokenizer(texts: Iterator[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with the special tokens and the chat template; any text survives the round trip.

    Args:
        texts: plain texts to learn merges from.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        extra_special_tokens=["<|user|>", "<|assistant|>", "<|system|>"],
        model_max_length=CONTEXT_LENGTH,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def plain_texts(document: str | list[Message]) -> list[str]:
    """The texts of a document without special tokens: itself, or the content of each turn."""
    return [document] if isinstance(document, str) else [message["content"] for message in document]


Window = tuple[list[int], list[int], list[float]]


def token_windows(
    documents: Iterator[str | list[Message]], tokenizer: PreTrainedTokenizerFast, length: int
) -> Iterator[Window]:
    """Windows of exactly `length` tokens, cut from the documents put end to end: ids, positions and loss weights.

    Positions start at 0 with each document, by which the model masks the documents apart. The weights of a document add
    up to 1, so that a one-word answer counts as much as a long review; those of system and user turns are 0.
    """
    tokens: list[tuple[int, int, float]] = []
    for document in documents:
        if isinstance(document, str):
            ids = tokenizer.encode(document + "<|end|>", add_special_tokens=False)
            learned = [1] * len(ids)
        else:
            encoded = tokenizer.apply_chat_template(document, return_dict=True, return_assistant_tokens_mask=True)
            ids, learned = encoded["input_ids"], encoded["assistant_masks"]
        # The first token of a document must not be predicted from the end of the one before it.
        learned = [0, *learned[1:]]
        tokens += [(token, i, learn / sum(learned)) for i, (token, learn) in enumerate(zip(ids, learned, strict=True))]
        while len(tokens) >= length:
            window, tokens = tokens[:length], tokens[length:]
            yield [t[0] for t in window], [t[1] for t in window], [t[2] for t in window]


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A small Llama in float32 with random weights.

    Args:
        tokenizer: gives the vocabulary size and the ids of the special tokens.
        seed: seed of the weights.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def pretrain(model: LlamaForCausalLM, windows: Iterator[Window], steps: int) -> float:
    """The mean loss of the last 50 steps, in nats, after training `model` in place on the next token.

    Args:
        model: model in float32.
        windows: endless windows as from `token_windows`, all equally long.
        steps: optimizer steps, each over `WINDOWS_PER_STEP` windows.
    """
    decayed = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
        lr=PEAK_LEARNING_RATE,
        betas=(0.9, 0.95),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP_STEPS, 0.5 * (1 + math.cos(math.pi * step / steps)))
    )
    model.train()
    history: list[float] = []
    for step in range(steps):
        columns = zip(*islice(windows, WINDOWS_PER_STEP), strict=True)
        ids, positions, weights = (torch.tensor(column) for column in columns)
        logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        loss = (losses * weights[:, 1:].flatten()).sum() / weights[:, 1:].sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        history.append(loss.item())
        if (step + 1) % 100 == 0:
            print(f"pretraining step {step + 1}/{steps}: loss {sum(history[-50:]) / 50:.3f}", flush=True)
    return sum(history[-50:]) / 50


def write_data(splits: dict[str, list[dict[str, str]]], folder: Path) -> None:
    """Writes `<split>.jsonl` for each split into `folder`."""
    folder.mkdir(parents=True)
    for split, rows in splits.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")


def write_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes the weights in bfloat16, both configurations and the tokenizer into `folder`."""
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    # The weights are written readable to their owner only.
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(folder)


def make(out: Path) -> dict[str, Any]:
    """Figures of what was made: parameters, last loss and rows; `data/` and `model/` under `out` are replaced."""
    # The order of additions, and so the last bits of the weights, depends on the number of threads.
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    splits = make_splits(SEED)
    excluded = review_texts(splits)
    sample = islice(pretraining_documents(Random(SEED + 1), excluded), 20_000)
    tokenizer = make_tokenizer(text for document in sample for text in plain_texts(document))
    model = make_model(tokenizer, SEED)
    documents = pretraining_documents(Random(SEED + 2), excluded)
    loss = pretrain(model, token_windows(documents, tokenizer, WINDOW_LENGTH), STEPS)
    for folder in (out / "data", out / "model"):
        shutil.rmtree(folder, ignore_errors=True)
    write_data(splits, out / "data")
    write_model(model, tokenizer, out / "model")
    rows = {split: len(rows) for split, rows in splits.items()}
    return {"parameters": model.num_parameters(), "vocabulary": len(tokenizer), "loss": loss, "rows": rows}


def main() -> None:
    """Reads the command line and makes everything."""
    parser = argparse.ArgumentParser(description="Make the embedded model and data from nothing.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder for model/ and data/")
    print(json.dumps(make(parser.parse_args().out)))


if __name__ == "__main__":
    main()
