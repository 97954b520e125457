"""The stop test: what is trained on is what is served, and the model learns to stop; each failure found, and mended."""

import copy

import pytest

from hf_peft_recipes.data import Renderer, require_serving
from hf_peft_recipes.data.checks import check_serving
from hf_peft_recipes.data.formats import Example
from hf_peft_recipes.data.rendering import IGNORED
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.models import load_tokenizer

TURNS = ("What is 2+2?", "It is 4.", "And 3+3?", "Six.")
CHAT = Example(tuple({"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(TURNS)))
TEMPLATE = "{%- for m in messages -%}<|{{ m.role }}|>{{ m.content }}%s{%%- endfor -%%}{%%- if add_generation_prompt -%%}<|assistant|>%s{%%- endif -%%}"  # fmt: skip


@pytest.fixture
def tokenizer():
    made = copy.deepcopy(load_tokenizer(None))
    made.add_special_tokens({"additional_special_tokens": ["<|close|>"]})
    return made


def renderer(tokenizer, ending, opening, loss_on="auto"):
    tokenizer.chat_template = TEMPLATE.replace("%%", "%").replace("%s", ending, 1).replace("%s", opening, 1)
    return Renderer(tokenizer, [tokenizer.eos_token_id], loss_on, "\n")


def said(made):
    return made.tokenizer.decode([label for label in made.row(CHAT).labels if label != IGNORED])


def test_all_is_well_with_the_embedded_model():
    tokenizer = load_tokenizer(None)
    checks = check_serving(Renderer(tokenizer, [tokenizer.eos_token_id], "auto", "\n"), [CHAT])
    assert [check.ok for check in checks] == [True] * 4
    assert "<|end|>" in next(check.detail for check in checks if "end token" in check.name)


def test_an_end_that_generation_does_not_know(tokenizer):
    made = renderer(tokenizer, "<|close|>\n", "")
    with pytest.raises(
        UserError, match=r"answers end with '<\|close\|>', on which generation does not stop.*--fix: let"
    ):
        require_serving(made, [CHAT], fixes=False)
    require_serving(made, [CHAT], fixes=True)
    assert made.tokenizer.eos_token == "<|close|>"
    assert said(made) == "It is 4.<|close|>Six.<|close|>"


def test_an_end_that_is_missing(tokenizer):
    made = renderer(tokenizer, "", "")
    with pytest.raises(UserError, match=r"nothing stands behind an answer.*--fix: add '<\|end\|>' behind every answer"):
        require_serving(made, [CHAT], fixes=False)
    require_serving(made, [CHAT], fixes=True)
    assert said(made).endswith("Six.<|end|>")
    assert made.row(CHAT).input_ids[-1] == made.tokenizer.eos_token_id


def test_a_thought_that_is_served_and_never_trained(tokenizer):
    made = renderer(tokenizer, "<|end|>", "<think>")
    with pytest.raises(UserError, match=r"the template serves …'.*<think>', which its conversations do not hold"):
        require_serving(made, [CHAT], fixes=False)
    require_serving(made, [CHAT], fixes=True)
    assert said(made) == "Six.<|end|>"
    assert made.tokenizer.decode(made.row(CHAT).input_ids).endswith("And 3+3?<|end|><|assistant|><think>Six.<|end|>")
    assert made.row(CHAT).input_ids[: len(made.prompt(CHAT))] == made.prompt(CHAT)


def test_a_start_token_that_stands_twice(tokenizer):
    from tokenizers.processors import TemplateProcessing

    tokenizer.chat_template = None
    tokenizer.bos_token = "<|close|>"
    begin = ("<|close|>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<|close|> $A", special_tokens=[begin])
    made = Renderer(tokenizer, [tokenizer.eos_token_id], "auto", "\n")
    check_serving(made, [Example(text="once")])
    assert all(check.ok for check in check_serving(made, [Example(text="once")]))
    with pytest.raises(UserError, match="a row begins with one start token at most: it stands twice"):
        require_serving(made, [Example(text="<|close|>once")], fixes=False)


def test_the_run_refuses_and_mends(tmp_path, jsonl):
    from transformers import AutoModelForCausalLM

    from hf_peft_recipes import get_recipe
    from hf_peft_recipes.embedded import MODEL_DIR

    base = tmp_path / "base"
    tokenizer = copy.deepcopy(load_tokenizer(None))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|close|>"]})
    tokenizer.chat_template = tokenizer.chat_template.replace("<|end|>", "<|close|>")
    assert "<|close|>" in tokenizer.chat_template
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    short = {"model": str(base), "dataset": str(jsonl), "max_steps": 1, "save_strategy": "no", "evaluation.max_rows": 4}
    with pytest.raises(UserError, match="on which generation does not stop"):
        get_recipe("full", **short).train(tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    result = get_recipe("full", fix=True, **short).train(tmp_path / "mended")
    assert all(check["ok"] for check in result.record["data"]["checks"])
    trained = result.load()
    assert trained.renderer.tokenizer.eos_token == "<|close|>"
    assert tokenizer.convert_tokens_to_ids("<|close|>") in trained.stop_ids
