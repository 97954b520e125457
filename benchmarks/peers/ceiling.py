"""How fast a job could be if nothing but its matrix products took time.

python -m benchmarks.peers.ceiling        # prints the rate of this machine's products in one line
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hf_peft_recipes import get_recipe
from hf_peft_recipes.device import detect_device
from hf_peft_recipes.plan.make_job import make_job
from hf_peft_recipes.plan.profiles import find_profile, measure_cpu
from hf_peft_recipes.plan.shapes import read_shape
from hf_peft_recipes.plan.throughput import product_flops


def token_flops(model: Path, recipe: str, record: Mapping[str, Any]) -> float:
    """Return the arithmetic that one token of the record's needs in matrix products, forward and back.

    It is that of the work, whoever does it: attention within documents only, the head on tokens with loss only, nothing
    twice. So what a contender computes beyond that counts against it.

    Args:
        model: its folder.
        recipe: `lora` or `qlora`.
        record: with the run's tokens, tokens with loss, and squared lengths of documents.
    """
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    device, tokens = detect_device(), sum(record["tokens"])
    overrides: dict[str, Any] = {"model": str(model)}
    job = make_job(get_recipe(recipe, **overrides).resolved, config, str(model), device)
    # A token attends to its own document: as many tokens as a document has, on average over tokens.
    attended = round(sum(record["squared_lengths"]) / tokens)
    job = replace(job, length=attended, supervised=sum(record["supervised_tokens"]) / tokens, checkpointing=False)
    return product_flops(job, read_shape(config, str(model)))


def share(model: Path, recipe: str, record: Mapping[str, Any], rate: float) -> dict[str, float]:
    """Return the ceiling in tokens a second, and which share of it the record reached.

    Args:
        model: its folder.
        recipe: `lora` or `qlora`.
        record: of a contender.
        rate: of products in the type that contenders multiply in, a second.
    """
    ceiling = rate / token_flops(model, recipe, record)
    return {"tokens_per_second": ceiling, "reached": record["tokens_per_second"] / ceiling}


def main() -> None:
    """Measure the rate (of a GPU: take it from the table of data sheets), and print it."""
    device = detect_device()
    profile = measure_cpu(device, seconds=2.0) if device.kind == "cpu" else find_profile(device)
    # As our recipes do, contenders multiply in bfloat16 where the device can.
    print(json.dumps(profile and {**asdict(profile), "product_flops": profile.product_flops(2 if device.bf16 else 4)}))


if __name__ == "__main__":
    main()
