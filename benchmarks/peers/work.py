"""The work itself, made from a seed: a model of a given shape, conversations of skewed lengths, an adapter.

python -m benchmarks.peers.work FOLDER SHAPE.json
"""

import json
import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_peft_recipes.embedded import MODEL_DIR

MODEL, ROWS, ADAPTER = "model", "rows.jsonl", "adapter"
MEDIAN_TOKENS, SPREAD, LONGEST_TOKENS = 105, 0.95, 1000
"""Of a conversation: log-normal, cut at the longest."""
_LEAST = 14
"""Tokens of a conversation that says nothing: number, roles, ends."""
_WORDS = (
    "the", "soup", "was", "cold", "and", "waiter", "polite", "although", "we", "waited", "long", "before", "anyone",
    "took", "our", "order", "but", "bread", "came", "warm", "from", "oven", "at", "last",
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes; the default is that of a model of 135 million parameters."""

    hidden: int = 576
    layers: int = 30
    vocabulary: int = 49152
    rows: int = 600

    def config(self) -> dict[str, Any]:
        """Return the keyword arguments of `LlamaConfig`."""
        width = 64 if self.hidden >= 256 else 16
        heads = self.hidden // width
        return {
            "hidden_size": self.hidden,
            "intermediate_size": -(-self.hidden * 8 // (3 * 64)) * 64,
            "num_hidden_layers": self.layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads // 3 if heads % 3 == 0 else max(1, heads // 2),
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
        }


def make_model(folder: Path, shape: Shape) -> None:
    """Write a Llama with random weights in bfloat16 into `folder`, with the embedded model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    torch.manual_seed(0)
    config = LlamaConfig(
        **shape.config(),
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(folder)


def make_rows(path: Path, count: int) -> None:
    """Write conversations of one exchange whose lengths are skewed: a median of about 105 tokens, 1,000 at most."""
    from transformers import AutoTokenizer

    tokenizer, draw = AutoTokenizer.from_pretrained(MODEL_DIR), random.Random(0)
    cost = {word: len(tokenizer(f" {word}").input_ids) for word in _WORDS}
    with path.open("w", encoding="utf-8") as file:
        for row in range(count):
            tokens = max(_LEAST, min(int(MEDIAN_TOKENS * draw.lognormvariate(0, SPREAD)), LONGEST_TOKENS)) - _LEAST
            asked = int(tokens * draw.uniform(0.3, 0.7))
            question, answer = (_words(number, cost, draw) for number in (asked, tokens - asked))
            messages = [
                {"role": "user", "content": f"{row}{question}?"}, {"role": "assistant", "content": f"So{answer}."}
            ]  # fmt: skip
            file.write(json.dumps({"messages": messages}) + "\n")


def _words(tokens: int, cost: Mapping[str, int], draw: random.Random) -> str:
    """Return words that come to about so many tokens."""
    words = ""
    while tokens > 0:
        word = draw.choice(_WORDS)
        words += f" {word}"
        tokens -= cost[word]
    return words


def make_adapter(folder: Path, model: Path) -> None:
    """Write an adapter for the model whose B is not zero, so that A has a gradient from the first step on."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from benchmarks.peers.job import LORA

    torch.manual_seed(1)
    wrapped = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16), LoraConfig(**LORA, task_type="CAUSAL_LM")
    )
    for name, tensor in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(tensor, std=0.02)
    wrapped.save_pretrained(folder)


def main() -> None:
    """Make all three."""
    folder, shape = Path(sys.argv[1]), Shape(**json.loads(sys.argv[2]))
    make_model(folder / MODEL, shape)
    make_rows(folder / ROWS, shape.rows)
    make_adapter(folder / ADAPTER, folder / MODEL)


if __name__ == "__main__":
    main()
