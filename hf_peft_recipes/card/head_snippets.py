"""Code that loads a published model which does not write on, and asks it something."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hf_peft_recipes.card.code import call, dtype_of, imports, literal, quantization_code
from hf_peft_recipes.card.publication import Publication

TEXT = "Your text, in the form of the training data"


@dataclass(frozen=True)
class _Asking:
    """How a kind of head is loaded and asked."""

    model_class: str
    lines: tuple[str, ...]
    """What follows once `model`, `tokenizer` and `inputs` are there."""


_ASKING = {
    "sequence_classification": _Asking(
        "AutoModelForSequenceClassification",
        ("logits = model(**inputs).logits", "print(model.config.id2label[int(logits[0].argmax())])"),
    ),
    "token_classification": _Asking(
        "AutoModelForTokenClassification",
        (
            "logits = model(**inputs).logits",
            "# The last token of a word carries the word's tag.",
            'for token, tag in zip(inputs["input_ids"][0], logits[0].argmax(-1)):',
            "    print(tokenizer.decode(token), model.config.id2label[int(tag)])",
        ),
    ),
    "reward": _Asking("AutoModelForSequenceClassification", ("print(float(model(**inputs).logits[0, 0]))",)),
    "seq2seq_lm": _Asking(
        "AutoModelForSeq2SeqLM",
        (
            "output = model.generate(**inputs, max_new_tokens=256, do_sample=False)",
            "print(tokenizer.decode(output[0], skip_special_tokens=True))",
        ),
    ),
}


def head_code(head: str, record: Mapping[str, Any], recipe: Mapping[str, Any], publication: Publication) -> str:
    """Return the code that loads what was published and asks it something.

    Args:
        head: what the model gives out, see `spec.objectives`.
        record: the published copy of `result.json`.
        recipe: what `recipe.yaml` holds.
        publication: where the run is published.
    """
    asking, data = _ASKING[head], record["data"]
    quantization = recipe.get("quantization") if publication.has_adapter else None
    lines = ["from peft import PeftModel"] if publication.has_adapter else []
    classes = sorted([asking.model_class, "AutoTokenizer"])
    lines += [*imports(quantization, *classes), ""]
    options = [f'dtype="{dtype_of(recipe) if publication.has_adapter else "auto"}"', 'device_map="auto"']
    if quantization:
        lines.append(quantization_code(quantization))
        options.append("quantization_config=quantization")
    load = f"{asking.model_class}.from_pretrained"
    tokenizer = f'tokenizer = AutoTokenizer.from_pretrained("{publication.repo_id}")'
    if publication.has_adapter:
        labels = data.get("labels") or []
        if labels:
            lines.append(f"labels = {json.dumps(labels, ensure_ascii=False)}")
            options += ["num_labels=len(labels)", "id2label=dict(enumerate(labels))"]
        elif head == "reward":
            options.append("num_labels=1")
        if head in ("sequence_classification", "reward"):
            options.append("pad_token_id=tokenizer.pad_token_id")
        if publication.base_revision:
            options.insert(0, f'revision="{publication.base_revision}"')
        lines += [
            tokenizer,
            call(f"base = {load}", [f'"{publication.base_model}"', *options]),
            f'model = PeftModel.from_pretrained(base, "{publication.repo_id}").eval()',
            "",
        ]
    else:
        lines += [tokenizer, call(f"model = {load}", [f'"{publication.repo_id}"', *options]), ""]
    return "\n".join([*lines, *_inputs(head, record, recipe), *asking.lines])


def _inputs(head: str, record: Mapping[str, Any], recipe: Mapping[str, Any]) -> list[str]:
    if head == "reward" and record["data"].get("chat_template"):
        messages = [
            {"role": "user", "content": "A prompt"},
            {"role": "assistant", "content": "The answer to be scored"},
        ]
        return [
            f"messages = {json.dumps(messages)}",
            'inputs = tokenizer.apply_chat_template(messages, return_dict=True, return_tensors="pt").to(model.device)',
        ]
    written = ((recipe.get("data") or {}).get("format") or {}).get("prompt")
    return [f"text = {literal(str(written or TEXT))}", 'inputs = tokenizer(text, return_tensors="pt").to(model.device)']
