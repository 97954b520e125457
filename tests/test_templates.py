"""Which tokens carry loss, under every chat template that TRL ships, against TRL's own marked variants of them.

TRL's variants mark answers by `{% generation %}`; ours are found in the stock templates, which is what is served.
"""

import copy
import re
from pathlib import Path

import pytest
import trl

from hf_peft_recipes.data.formats import BadRowError, Example
from hf_peft_recipes.data.rendering import IGNORED, Renderer
from hf_peft_recipes.models import load_tokenizer

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
STOCK = sorted(path.stem for path in TEMPLATES.glob("*.jinja") if not path.stem.endswith("_training"))
WITHOUT_VARIANT = {
    "gemma4", "gemma4_v2", "gemma4_v3", "gemma4_v4", "gemma4_v5", "lfm2_2_5", "lfm2_2_5_v2", "lfm2_2_5_vl", "llama3_1",
    "llama3_2",
}  # fmt: skip
OTHER_TEXT = {
    # TRL's variant keeps the thoughts of earlier turns, or opens them, where the stock template drops them.
    "two turns": {"glm4moe", "qwen3", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6"},
    "one turn": {"glm4moe"},
}
SPECIAL = re.compile(r"<\|[A-Za-z_0-9]+\|>|<[a-z]+_of_[a-z]+>|</?s>|<｜[^｜]+｜>|<turn\|>|<\|turn>")
ENDS = re.compile(
    r"im_end|eot|end_of_turn|<\|end\|>|END_OF_TURN|return|end▁of▁sentence|end_of_utterance|</s>|<turn\||<\|user"
)


def turns(*contents):
    return tuple({"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(contents))


CONVERSATIONS = {
    "one turn": turns("Hi", "Hello there."),
    "two turns": turns("What is 2+2?", "It is 4.", "And 3+3?", "Six."),
}
THOUGHTS = turns("2+2?", "<think>\nAdd.\n</think>\n\nIt is 4.", "3+3?", "<think>\nAgain.\n</think>\n\nSix.")


@pytest.fixture(scope="module")
def embedded():
    return load_tokenizer(None)


@pytest.fixture
def renderer(embedded, template):
    """Return a renderer with the template, whose special words are tokens of their own as in the real tokenizer."""
    tokenizer, text = copy.deepcopy(embedded), (TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")
    special = sorted(set(SPECIAL.findall(text)))
    tokenizer.add_special_tokens({"additional_special_tokens": special, "bos_token": "<BOS>", "eos_token": "<EOS>"})
    tokenizer.chat_template = text
    stops = [tokenizer.convert_tokens_to_ids(word) for word in special if ENDS.search(word)]
    return Renderer(tokenizer, [*stops, tokenizer.eos_token_id], "assistant", "\n")


def runs(flags):
    """Return `(start, end)` of every stretch of true flags."""
    edges = [at for at, (a, b) in enumerate(zip([False, *flags], [*flags, False], strict=True)) if a != b]
    return list(zip(edges[::2], edges[1::2], strict=True))


def marked_by_trl(renderer, template, messages):
    """Return token ids and flags as TRL's variant of the template has them."""
    text = (TEMPLATES / f"{template}_training.jinja").read_text(encoding="utf-8")
    shown = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in messages]
    made = renderer.tokenizer.apply_chat_template(
        shown if renderer.in_parts else list(messages),
        chat_template=text, return_assistant_tokens_mask=True, return_dict=True, tokenize=True,
    )  # fmt: skip
    return made["input_ids"], [bool(flag) for flag in made["assistant_masks"]]


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("template", STOCK)
def test_supervised_tokens_are_those_that_trl_marks(renderer, template, conversation):
    messages = CONVERSATIONS[conversation]
    row, tokenizer = renderer.row(Example(messages)), renderer.tokenizer
    ours = [label != IGNORED for label in row.labels]
    spans = runs(ours)
    for (start, end), turn in zip(spans, messages[1::2], strict=True):
        said = tokenizer.decode(row.input_ids[start:end])
        assert turn["content"] in said
        assert messages[0]["content"] not in said
    assert row.input_ids[spans[-1][1] - 1] in renderer.stop_ids or template in ("glm4moe",), "nothing ends the answer"
    assert (template in WITHOUT_VARIANT) is not (TEMPLATES / f"{template}_training.jinja").exists()
    if template in WITHOUT_VARIANT:
        return
    ids, marked = marked_by_trl(renderer, template, messages)
    assert (ids != row.input_ids) is (template in OTHER_TEXT[conversation])
    if ids != row.input_ids:
        return
    assert all(theirs for theirs, mine in zip(marked, ours, strict=True) if mine), "an answer's token carries no loss"
    # What TRL marks beyond ours is never produced by the model: it is served to it, or stands behind the end.
    served = renderer.serve(messages[:-1])
    for start, end in runs([theirs and not mine for theirs, mine in zip(marked, ours, strict=True)]):
        before_answer = end in [span[0] for span in spans]
        behind_end = start in [span[1] for span in spans] and ids[start - 1] in renderer.stop_ids
        piece = tokenizer.decode(ids[start:end])
        assert (before_answer and piece in tokenizer.decode(served)) or (behind_end and not any(map(str.isalnum, SPECIAL.sub("", piece.replace("<EOS>", ""))))), piece  # fmt: skip


@pytest.mark.parametrize("template", STOCK)
def test_thoughts_never_move_the_loss_to_the_question(renderer, template):
    made = renderer.rows([Example(THOUGHTS)])[0]
    assert not isinstance(made, BadRowError)
    flags = [label != IGNORED for label in made.labels]
    said = [renderer.tokenizer.decode(made.input_ids[start:end]) for start, end in runs(flags)]
    assert [("It is 4." in said[0]), ("Six." in said[-1])] == [True, True]
    assert not any("2+2?" in text or "3+3?" in text for text in said)


@pytest.mark.parametrize("template", ["qwen3"])
def test_an_earlier_thought_that_is_not_served_is_not_trained(renderer):
    made = renderer.row(Example(THOUGHTS))
    text = renderer.tokenizer.decode([label for label in made.labels if label != IGNORED])
    assert text == "It is 4.<|im_end|><think>\nAgain.\n</think>\n\nSix.<|im_end|>"


@pytest.mark.parametrize("template", ["llama3"])
def test_a_content_that_looks_like_an_end_does_not_end_the_turn(renderer):
    made = renderer.row(Example(turns("Quote it.", "It says <|eot_id|> here, twice <|eot_id|> so.")))
    text = renderer.tokenizer.decode([label for label in made.labels if label != IGNORED])
    assert text.endswith("so.<|eot_id|>")


@pytest.mark.parametrize("template", ["llama3"])
def test_a_turn_that_leaves_no_trace_is_an_error(renderer):
    renderer.tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    )
    with pytest.raises(BadRowError, match="turn 2 cannot be located"):
        renderer.row(Example(CONVERSATIONS["one turn"]))
