"""Code that loads what was published and asks it something, as it was trained: it runs as it stands."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hf_peft_recipes.card.code import call, dtype_of, imports, literal, quantization_code
from hf_peft_recipes.card.head_snippets import head_code
from hf_peft_recipes.card.publication import Publication
from hf_peft_recipes.spec.objectives import OBJECTIVES
from hf_peft_recipes.spec.quantized import EIGHT, FLOAT8, FOUR, kind_of_base

PROMPT = "Your prompt, in the form of the training data"
TEXT_PROMPT = "The beginning of a text"

_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values of vLLM's `--max-lora-rank` (vllm.config.lora.MaxLoRARanks)."""


@dataclass(frozen=True)
class Snippet:
    """One block of code."""

    title: str
    language: str
    code: str


def snippets(record: Mapping[str, Any], recipe: Mapping[str, Any], publication: Publication) -> list[Snippet]:
    """Return the blocks of «how to load it», in order.

    Args:
        record: the published copy of `result.json`.
        recipe: what `recipe.yaml` holds.
        publication: where the run is published.
    """
    if (head := OBJECTIVES[record["objective"]].head) != "causal_lm":
        title = "PEFT" if publication.has_adapter else "transformers"
        return [Snippet(title, "python", head_code(head, record, recipe, publication))]
    asked = _Asked(record, recipe)
    made = [_with_peft(recipe, publication, asked)] if publication.has_adapter else []
    made.append(_with_transformers(recipe, publication, asked))
    if (serve := _vllm_serve(recipe, publication)) is not None:
        made += [Snippet("vLLM", "bash", serve), Snippet("", "bash", _vllm_request(publication, asked))]
    return made


class _Asked:
    """How a prompt was put in training, and how long answers were."""

    def __init__(self, record: Mapping[str, Any], recipe: Mapping[str, Any]) -> None:
        data, section = record["data"], recipe.get("data") or {}
        self.is_text = data["format"] == "text"
        self.has_template = not self.is_text and data.get("chat_template", True)
        self.separator = "" if self.is_text else str(data["separator"])
        # Mending may make another token the end of an answer; the base's generation config knows nothing of that.
        self.end_was_mended = bool(section.get("fix"))
        written = (section.get("format") or {}).get("prompt")
        self.prompt = TEXT_PROMPT if self.is_text else str(written or PROMPT)
        longest = (data["ledger"].get("supervised_lengths") or {}).get("max") or 256
        self.max_new_tokens = next((size for size in (16, 64, 256) if size >= longest), 1024)

    @property
    def plain(self) -> str:
        """The prompt as it stands before the answer, where no template writes it."""
        return self.prompt if self.prompt[-1:].isspace() else self.prompt + self.separator

    @property
    def messages(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": self.prompt}]


def _with_peft(recipe: Mapping[str, Any], publication: Publication, asked: _Asked) -> Snippet:
    quantization = recipe.get("quantization")
    lines = ["from peft import PeftModel", *imports(quantization, "AutoModelForCausalLM", "AutoTokenizer"), ""]
    options = [f'dtype="{dtype_of(recipe)}"', 'device_map="auto"']
    if publication.base_revision:
        options.insert(0, f'revision="{publication.base_revision}"')
    if quantization:
        lines.append(quantization_code(quantization))
        options.append("quantization_config=quantization")
    lines += [
        call("base = AutoModelForCausalLM.from_pretrained", [f'"{publication.base_model}"', *options]),
        f'model = PeftModel.from_pretrained(base, "{publication.repo_id}").eval()',
        f'tokenizer = AutoTokenizer.from_pretrained("{publication.repo_id}")',
        "",
    ]
    if asked.has_template:
        lines += [
            f"messages = {json.dumps(asked.messages, ensure_ascii=False)}",
            "inputs = tokenizer.apply_chat_template(\n"
            '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"\n'
            ").to(model.device)",
        ]
    else:
        lines += [
            f"prompt = {literal(asked.plain)}",
            'inputs = tokenizer(prompt, return_tensors="pt").to(model.device)',
        ]
    lines += [
        *_ends(asked),
        call("output = model.generate", ["**inputs", *_generation(asked)]),
        'answer = output[0, inputs["input_ids"].shape[1] :]',
        "print(tokenizer.decode(answer, skip_special_tokens=True))",
    ]
    kind = {FOUR: "4-bit", EIGHT: "8-bit", FLOAT8: "float8"}.get(str(kind_of_base(quantization)))
    title = f"PEFT, on the same {kind} base as in training" if kind else "PEFT"
    return Snippet(title, "python", "\n".join(lines))


def _with_transformers(recipe: Mapping[str, Any], publication: Publication, asked: _Asked) -> Snippet:
    quantization = recipe.get("quantization") if publication.has_adapter else None
    dtype = dtype_of(recipe) if publication.has_adapter else "auto"
    options = [f'dtype="{dtype}"', 'device_map="auto"']
    if quantization:
        options.append("quantization_config=quantization")
    asks = json.dumps(asked.messages, ensure_ascii=False) if asked.has_template else literal(asked.plain)
    lines = [
        *imports(quantization, "AutoModelForCausalLM", "AutoTokenizer", "pipeline"),
        "",
        *([quantization_code(quantization)] if quantization else []),
        call("model = AutoModelForCausalLM.from_pretrained", [f'"{publication.repo_id}"', *options]),
        f'tokenizer = AutoTokenizer.from_pretrained("{publication.repo_id}")',
        'generate = pipeline("text-generation", model=model, tokenizer=tokenizer)',
        "",
        *_ends(asked),
        f"{'messages' if asked.has_template else 'prompt'} = {asks}",
        call(
            "answers = generate",
            ["messages" if asked.has_template else "prompt", *_generation(asked), "return_full_text=False"],
        ),
        'print(answers[0]["generated_text"])',
    ]
    title = "transformers, which finds the base by itself (with PEFT installed)" if publication.has_adapter else ""
    return Snippet(title or "transformers", "python", "\n".join(lines))


def _vllm_serve(recipe: Mapping[str, Any], publication: Publication) -> str | None:
    """Return the command that serves the model, None for an adapter of a kind that vLLM does not serve."""
    end = bool((recipe.get("data") or {}).get("fix"))
    if not publication.has_adapter:
        return f"vllm serve {publication.repo_id} --dtype bfloat16"
    adapter = recipe["adapter"]
    rank = max(adapter.get("r") or 8, *(adapter.get("rank_pattern") or {"": 0}).values())
    limit = next((size for size in _VLLM_RANKS if size >= rank), None)
    unserved = ("use_dora", "modules_to_save", "trainable_token_indices", "target_parameters", "lora_bias")
    if str(adapter["peft_type"]).upper() != "LORA" or limit is None or any(adapter.get(key) for key in unserved):
        return None
    words = [f"vllm serve {publication.base_model}"]
    words += [f"--revision {publication.base_revision}"] if publication.base_revision else []
    words += [f"--tokenizer {publication.repo_id}"] if end else []
    words += ["--dtype bfloat16"] if dtype_of(recipe) != "float16" else ["--dtype float16"]
    # What vLLM makes of `--quantization fp8` rounds activations too: another base than the one that was trained on.
    words += ["--quantization bitsandbytes"] if kind_of_base(recipe.get("quantization")) in (FOUR, EIGHT) else []
    words += [f"--enable-lora --max-lora-rank {limit}", f"--lora-modules {publication.name}={publication.repo_id}"]
    return " \\\n  ".join(words)


def _vllm_request(publication: Publication, asked: _Asked) -> str:
    name = publication.name if publication.has_adapter else publication.repo_id
    asks: dict[str, Any] = {"messages": asked.messages} if asked.has_template else {"prompt": asked.plain}
    body = {"model": name, **asks, "max_tokens": asked.max_new_tokens, "temperature": 0}
    path = "chat/completions" if asked.has_template else "completions"
    # Within single quotes a shell takes all but the quote itself as it is.
    pairs = ",\n".join(f"    {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in body.items())
    quoted = f"{{\n{pairs}\n  }}".replace("'", "'\\''")
    return f"curl http://localhost:8000/v1/{path} -H 'Content-Type: application/json' \\\n  -d '{quoted}'"


def _generation(asked: _Asked) -> list[str]:
    ends = ["eos_token_id=ends"] if asked.end_was_mended else []
    return [f"max_new_tokens={asked.max_new_tokens}", "do_sample=False", *ends]


def _ends(asked: _Asked) -> list[str]:
    """Return the lines that add the tokenizer's end token to those that the base stops on."""
    if not asked.end_was_mended:
        return []
    return [
        "ends = model.generation_config.eos_token_id",
        "ends = [tokenizer.eos_token_id, *([ends] if isinstance(ends, int) else ends or [])]",
    ]
