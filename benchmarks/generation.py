"""How fast answers are drawn: completions a second, beside what `generate` of transformers does with the same prompts.

    python -m benchmarks.generation [--rounds 5] [--out benchmarks/results/generation.jsonl]

Four ways take turns in one process, the same prompts and options to each, with a LoRA adapter that is not merged:

- `one by one`: `model.generate`, a completion a call;
- `prompt by prompt`: `model.generate`, a prompt a call, its completions as `num_return_sequences`;
- `batches`: the same, 16 prompts a call in the order in which they come;
- `ours`: `generation.sampling.sample`.

A ratio is of the same round, so that what else the machine does falls on both.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_peft_recipes.bench.cell import SCHEMA_VERSION, circumstances
from hf_peft_recipes.bench.suite import Line, find_line, is_result, read_lines, with_line, write_lines
from hf_peft_recipes.embedded import DATA_DIR
from hf_peft_recipes.errors import RecipeError, UserError
from hf_peft_recipes.measure.facts import code_digest, commit_of

OUT = Path(__file__).parent / "results" / "generation.jsonl"
PUBLIC = Path(os.environ.get("HF_PEFT_RECIPES_PUBLIC_DATA", Path(__file__).parents[2] / "shared"))
BATCH = 16
OURS = "ours"
Completions = list[list[int]]


@dataclass(frozen=True)
class Cell:
    """What is drawn."""

    model: str
    """`embedded` or `stories260K`."""
    prompts: int
    samples: int
    max_new_tokens: int
    rounds: int

    @property
    def name(self) -> str:
        """In one word."""
        return f"{self.model}_{self.max_new_tokens}"


@dataclass(frozen=True)
class Place:
    """A model with its prompts."""

    model: Any
    prompts: list[list[int]]
    stop_ids: list[int]
    pad_id: int


def cells(rounds: int) -> list[Cell]:
    """Return the cells: answers of one word, and answers that go on for a while."""
    return [Cell("embedded", 48, 4, 64, rounds), Cell("stories260K", 48, 4, 64, rounds)]


def load(cell: Cell) -> Place:
    """Return what the cell asks for: the embedded model with reviews, or stories260K with questions of GSM8K.

    Raises:
        UserError: the public model and data are not at hand.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from hf_peft_recipes.data import Renderer
    from hf_peft_recipes.models import load_base, load_tokenizer, stop_ids

    section, file, key = {"dtype": "float32"}, DATA_DIR / "test.jsonl", "prompt"
    if cell.model != "embedded":
        section["name_or_path"] = str(PUBLIC / "models" / cell.model)
        file, key = PUBLIC / "data" / "gsm8k" / "test.jsonl", "question"
        if not file.is_file():
            raise UserError(f"no public data at {PUBLIC} (HF_PEFT_RECIPES_PUBLIC_DATA names another place)")
    tokenizer = load_tokenizer(section)
    base = load_base(AutoModelForCausalLM, section, None)
    stops = stop_ids(base.generation_config, tokenizer)
    renderer = Renderer(tokenizer, stops, "auto", "\n")
    texts = [json.loads(line)[key] for line in file.read_text(encoding="utf-8").splitlines()[: cell.prompts]]
    prompts = [renderer.serve([{"role": "user", "content": text}]) for text in texts]
    adapter = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    return Place(get_peft_model(base, adapter).eval(), prompts, stops, tokenizer.pad_token_id)


def upstream(place: Place, cell: Cell, rows: Sequence[list[int]], samples: int) -> Completions:
    """Return what `generate` draws for some prompts in one call, without the tokens that end it."""
    import torch
    from transformers import GenerationConfig

    width = max(map(len, rows))
    config = GenerationConfig(
        max_new_tokens=cell.max_new_tokens, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
        num_return_sequences=samples, eos_token_id=place.stop_ids, pad_token_id=place.pad_id,
    )  # fmt: skip
    ids = torch.tensor([[place.pad_id] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    with torch.inference_mode():
        drawn = place.model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, width:].tolist()
    ends = [next((at for at, token in enumerate(row) if token in place.stop_ids), len(row)) for row in drawn]
    return [row[:end] for row, end in zip(drawn, ends, strict=True)]


def one_by_one(place: Place, cell: Cell, seed: int) -> Completions:
    """Draw each completion in a call of its own."""
    return [found for row in place.prompts for _ in range(cell.samples) for found in upstream(place, cell, [row], 1)]


def prompt_by_prompt(place: Place, cell: Cell, seed: int) -> Completions:
    """Draw the completions of each prompt in a call."""
    return [found for row in place.prompts for found in upstream(place, cell, [row], cell.samples)]


def batches(place: Place, cell: Cell, seed: int) -> Completions:
    """Draw those of some prompts in a call, in the order in which they come."""
    parts = [place.prompts[start : start + BATCH] for start in range(0, len(place.prompts), BATCH)]
    return [found for part in parts for found in upstream(place, cell, part, cell.samples)]


def ours(place: Place, cell: Cell, seed: int) -> Completions:
    """Draw all of them by this package."""
    from hf_peft_recipes.generation.sampling import sample

    options = {"max_new_tokens": cell.max_new_tokens, "temperature": 1.0}
    found = sample(place.model, place.prompts, cell.samples, options, seed, place.stop_ids, place.pad_id)
    return [answer.ids for _, answers in found for answer in answers]


WAYS: dict[str, Callable[[Place, Cell, int], Completions]] = {
    "one by one": one_by_one,
    "prompt by prompt": prompt_by_prompt,
    "batches": batches,
    OURS: ours,
}


def measure(cell: Cell) -> Line:
    """Return the line of a cell: completions a second of each way in each round, and by how much ours is faster."""
    import torch

    place = load(cell)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    tokens: dict[str, list[float]] = {way: [] for way in WAYS}
    for way in WAYS.values():
        # What is made at the first call is no part of the speed.
        way(Place(place.model, place.prompts[:2], place.stop_ids, place.pad_id), cell, 0)
    order = list(WAYS)
    for turn in range(cell.rounds):
        torch.manual_seed(turn)
        # Each way comes first in some round, and last in another.
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            started = time.perf_counter()
            found = WAYS[name](place, cell, turn)
            seconds[name].append(time.perf_counter() - started)
            tokens[name].append(statistics.mean(map(len, found)))
            assert len(found) == cell.prompts * cell.samples
    number = cell.prompts * cell.samples
    return {
        "schema_version": SCHEMA_VERSION, "name": cell.name, "cell": asdict(cell), "status": "done",
        "load_average": os.getloadavg()[0],
        "prompt_tokens": statistics.mean(map(len, place.prompts)),
        "ways": {
            way: {
                "completions_per_second": [number / each for each in seconds[way]],
                "tokens_a_completion": statistics.mean(tokens[way]),
            }
            for way in WAYS
        },
        "ratios": {
            way: [theirs / mine for theirs, mine in zip(seconds[way], seconds[OURS], strict=True)]
            for way in WAYS if way != OURS
        },
        "commit": commit_of(Path(__file__).parent), "code": code_digest(), **circumstances(),
    }  # fmt: skip


def main() -> None:
    """Measure what is missing, print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", action="store_true", help="take results of other commits too")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    try:
        lines = read_lines(options.out)
        for cell in cells(options.rounds):
            line = find_line(lines, cell)
            if line is None or not is_result(line, options.keep):
                line = measure(cell)
                lines = with_line(lines, line)
                write_lines(options.out, lines)
            told = [f"{statistics.median(ratios):.1f} times {way}" for way, ratios in line["ratios"].items()]
            print(f"{line['name']}: {', '.join(told)}", flush=True)
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
