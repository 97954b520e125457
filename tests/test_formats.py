"""From rows to examples: every common layout is recognised, and what cannot be used says why in the row's own words."""

import json
import pickle
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_peft_recipes.data.columns import by_position
from hf_peft_recipes.data.entities import entities, entity_text
from hf_peft_recipes.data.formats import BadRowError, detect_format
from hf_peft_recipes.data.sources import read_data
from hf_peft_recipes.errors import UserError


def detect(row, mapping=None, templates=None):
    return detect_format(list(row), mapping or {}, "a.jsonl", templates, [row])


def example(row, mapping=None, templates=None):
    return detect(row, mapping, templates).example(row)


def turns(*said):
    return [
        {"role": {"s": "system", "u": "user", "a": "assistant", "t": "tool"}[who], "content": text}
        for who, text in said
    ]


def pairs(messages):
    return [(turn["role"][0], turn["content"]) for turn in messages]


U, A = ("u", "a"), ("a", "b")
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


@pytest.mark.parametrize(
    ("row", "name", "messages", "supervised_from"),
    [
        ({"messages": turns(("s", "s"), U, A)}, "messages", [("s", "s"), U, A], 0),
        ({"messages": turns(U, A), "prompt": "a", "text": "x"}, "messages", [U, A], 0),
        ({"messages": turns(U, A), "system": "s"}, "messages", [("s", "s"), U, A], 0),
        ({"messages": turns(("s", "s"), U, A), "system": "s"}, "messages", [("s", "s"), U, A], 0),
        ({"messages": turns(U, A), "system": None}, "messages", [U, A], 0),
        ({"conversations": turns(U, A)}, "messages", [U, A], 0),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "messages", [U, A], 0),
        ({"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "a", "role": None}, {"role": "assistant", "content": "b", "from": None}]},
         "messages", [("s", "s"), U, A], 0),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": " c"}]}, *turns(A)]}, "messages", [("u", "a c"), A], 0),
        ({"messages": [*turns(U), {"role": "assistant", "content": "b", "weight": 0}, *turns(("u", "c")), {"role": "assistant", "content": "d", "weight": 1}]},
         "messages", [U, A, ("u", "c"), ("a", "d")], 2),
        ({"messages": turns(U, A, ("u", "c"))}, "messages", [U, A, ("u", "c")], 0),
        ({"instruction": "a", "input": "c", "output": "b"}, "alpaca", [("u", "a\n\nc"), A], 1),
        ({"instruction": "a", "input": "", "output": "b", "system": "s", "text": "all"}, "alpaca", [("s", "s"), U, A], 2),
        ({"instruction": "a", "input": None, "output": "b"}, "alpaca", [U, A], 1),
        ({"instruction": "a", "output": "b"}, "alpaca", [U, A], 1),
        ({"instruction": "a", "context": "c", "response": "b"}, "alpaca", [("u", "a\n\nc"), A], 1),
        ({"prompt": "a", "completion": "b"}, "prompt_completion", [U, A], 1),
        ({"prompt": "a", "completion": "b", "label": "sport"}, "prompt_completion", [U, A], 1),
        ({"prompt": turns(U), "completion": turns(A)}, "prompt_completion", [U, A], 1),
        ({"prompt": turns(U, A, ("u", "c")), "completion": turns(("a", "d")), "system": "s"}, "prompt_completion", [("s", "s"), U, A, ("u", "c"), ("a", "d")], 4),
        ({"question": "a", "answer": "b"}, "question_answer", [U, A], 1),
        ({"question": "a", "answer": 4}, "question_answer", [U, ("a", "4")], 1),
        ({"source": "a", "target": "b"}, "source_target", [U, A], 1),
        ({"text": "a", "label": "b"}, "text_label", [U, A], 1),
        ({"text": "a", "label": 1}, "text_label", [U, ("a", "1")], 1),
        ({"tokens": ["a", "c"], "tags": ["O", "B-x"]}, "tokens_tags", [("u", "a c"), ("a", "c: x")], 1),
        ({"id": 1, "tokens": ["a"], "ner_tags": ["O"]}, "tokens_tags", [U, ("a", "none")], 1),
    ],
)  # fmt: skip
def test_conversations(row, name, messages, supervised_from):
    made = detect(row)
    assert made.name == name
    found = pickle.loads(pickle.dumps(made)).example(row)
    assert (pairs(found.messages), found.supervised_from) == (messages, supervised_from)
    assert found.text is None and found.rejected == () and found.label is None and found.tools == ()
    answers = [index for index, (who, _) in enumerate(messages) if who == "a"]
    assert found.reference == messages[answers[-1]][1]
    assert pairs(found.before_reference) == messages[: answers[-1]]


def test_only_what_was_cut_to_be_joined_is_joined_exactly():
    assert detect({"prompt": "a", "completion": "b"}).joins_exactly
    assert not detect({"question": "a", "answer": "b"}).joins_exactly
    assert not detect(
        {"prompt": "a", "completion": "b"}, {"prompt": "prompt", "completion": "completion"}
    ).joins_exactly
    assert not detect({"prompt": "a", "completion": "b"}, None, {"prompt": "Q: {prompt}"}).joins_exactly


def test_plain_text():
    found = example({"text": " once upon\n", "id": 3})
    assert (found.text, found.messages, found.reference, found.before_reference) == (" once upon\n", (), None, ())


PREFIX = turns(U, A, ("u", "c"))


@pytest.mark.parametrize(
    ("row", "prompt", "chosen", "rejected"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, [U], [A], [("a", "c")]),
        ({"question": "a", "chosen": "b", "rejected": "c", "system": "s"}, [("s", "s"), U], [A], [("a", "c")]),
        ({"prompt": turns(U), "chosen": turns(A), "rejected": turns(("a", "c"))}, [U], [A], [("a", "c")]),
        ({"chosen": [*PREFIX, *turns(("a", "yes"))], "rejected": [*PREFIX, *turns(("a", "no"))]}, [U, A, ("u", "c")], [("a", "yes")], [("a", "no")]),
        ({"prompt": "a", "chosen": turns(U, ("a", "yes")), "rejected": turns(U, ("a", "no"))}, [U], [("a", "yes")], [("a", "no")]),
        ({"chosen": "Say it.\nYes, I do", "rejected": "Say it.\nYes, I don't"}, [("u", "Say it.\n")], [("a", "Yes, I do")], [("a", "Yes, I don't")]),
        ({"chosen": "2 + 2 is 4", "rejected": "2 + 2 is 5"}, [("u", "2 + 2 is ")], [("a", "4")], [("a", "5")]),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: yes", "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: yeah"},
         [U, A, ("u", "c")], [("a", "yes")], [("a", "yeah")]),
    ],
)  # fmt: skip
def test_preferences(row, prompt, chosen, rejected):
    assert detect(row).name == "preference"
    found = example(row)
    assert pairs(found.messages) == [*prompt, *chosen]
    assert (found.supervised_from, pairs(found.rejected)) == (len(prompt), rejected)


@pytest.mark.parametrize(("value", "label"), [(True, True), (0, False), ("True", True), ("false", False)])
def test_feedback(value, label):
    row = {"prompt": "a", "completion": "b", "label": value}
    assert detect(row).name == "feedback"
    found = example(row)
    assert (pairs(found.messages), found.supervised_from, found.label) == ([U, A], 1, label)


def test_tool_calls_are_kept():
    schema = {
        "type": "function",
        "function": {"name": "f", "parameters": {"properties": {"x": None, "y": {"type": "string"}}}},
    }
    messages = [
        {"role": "user", "content": "a", "tool_calls": None, "name": "me"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", **CALL}], "reasoning_content": "hm", "tool_call_id": None},
        {"role": "tool", "content": "3", "tool_call_id": "1", "name": "f"},
        {"role": "tool", "content": "", "name": "f"},
        {"role": "assistant", "content": "b", "tool_calls": []},
    ]  # fmt: skip
    found = example({"messages": messages, "tools": [schema]})
    assert found.messages == (
        {"role": "user", "content": "a", "name": "me"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "1", **CALL}], "reasoning_content": "hm"},
        {"role": "tool", "content": "3", "tool_call_id": "1", "name": "f"},
        {"role": "tool", "content": "", "name": "f"},
        {"role": "assistant", "content": "b"},
    )
    # Arrow gives a tool the keys of all others, with nulls.
    assert found.tools[0]["function"]["parameters"] == {"properties": {"y": {"type": "string"}}}
    as_text = example({"messages": messages, "tools": json.dumps([schema])})
    assert as_text.tools == (schema,)
    flat = example({"messages": messages, "tools": [{"name": "f", "parameters": {}}]}).tools
    assert flat == ({"type": "function", "function": {"name": "f", "parameters": {}}},)


@pytest.mark.parametrize(
    "calls",
    [
        [CALL],
        [{"name": "f", "arguments": '{"x": 1}'}],
        json.dumps([CALL]),
        [{"function": {"name": "f", "arguments": {"x": 1, "y": None}}}],
    ],
)
def test_calls_are_brought_to_one_form(calls):
    row = {"messages": [*turns(U), {"role": "assistant", "content": "", "tool_calls": calls}]}
    assert example(row).messages[1]["tool_calls"] == [CALL]


def test_sharegpt_calls():
    said = [
        ("human", "a"),
        ("function_call", '{"name": "f", "arguments": {"x": 1}}'),
        ("observation", "3"),
        ("gpt", "b"),
    ]
    row = {
        "conversations": [{"from": who, "value": text} for who, text in said],
        "tools": '[{"name": "f"}]',
        "system": "s",
    }
    found = example(row)
    assert pairs(found.messages) == [("s", "s"), U, ("a", ""), ("t", "3"), A]
    assert found.messages[2]["tool_calls"] == [CALL]
    assert found.tools == ({"type": "function", "function": {"name": "f"}},)


USER, ANSWER = turns(U, A)


@pytest.mark.parametrize(
    ("mapping", "row", "messages"),
    [
        ({"prompt": "frage", "completion": "antwort"}, {"frage": "a", "antwort": "b"}, [U, A]),
        (
            {"prompt": "frage", "completion": "antwort", "system": "rolle"},
            {"frage": "a", "antwort": "b", "rolle": "s"},
            [("s", "s"), U, A],
        ),
        ({"messages": "chat"}, {"chat": [USER, ANSWER]}, [U, A]),
        ({"text": "satz", "label": "klasse"}, {"satz": "a", "klasse": "b"}, [U, A]),
        ({"prompt": 1, "completion": "2"}, {"1": "a", "2": "b"}, [U, A]),
        ({"chosen": "x", "rejected": "y", "prompt": "p"}, {"p": "a", "x": "b", "y": "c"}, [U, A]),
        ({"prompt": "p", "completion": "c", "label": "l"}, {"p": "a", "c": "b", "l": False}, [U, A]),
        ({"system": "rolle"}, {"question": "a", "answer": "b", "rolle": "s"}, [("s", "s"), U, A]),
        ({"messages": "messages"}, {"messages": [USER, ANSWER], "chosen": "x", "rejected": "y"}, [U, A]),
    ],
)
def test_mapped_columns(mapping, row, messages):
    assert pairs(example(row, mapping).messages) == messages


@pytest.mark.parametrize(
    ("templates", "mapping", "row", "messages"),
    [
        ({"prompt": "Review: {text}"}, {}, {"text": "a", "label": "b"}, [("u", "Review: a"), A]),
        ({"prompt": "{q} ({n}) {{x}}", "completion": "{a}"}, {}, {"q": "a", "a": "b", "n": 3}, [("u", "a (3) {x}"), A]),
        ({"prompt": "{a b}{c.d}"}, {"completion": "z"}, {"a b": "a", "c.d": "", "z": "b"}, [U, A]),
        ({"system": "Be kind."}, {}, {"question": "a", "answer": "b"}, [("s", "Be kind."), U, A]),
        ({"system": "Be kind."}, {}, {"messages": [USER, ANSWER]}, [("s", "Be kind."), U, A]),
        ({"prompt": "{1}?"}, {"completion": 2}, {"1": "a", "2": "b"}, [("u", "a?"), A]),
        ({"text": "{question} {answer}"}, {}, {"question": "a", "answer": "b"}, None),
    ],
)
def test_templates(templates, mapping, row, messages):
    found = example(row, mapping, templates)
    assert pickle.loads(pickle.dumps(detect(row, mapping, templates))).example(row) == found
    if messages is None:
        assert found.text == "a b"
    else:
        assert pairs(found.messages) == messages


@pytest.mark.parametrize(
    ("columns", "mapping", "templates", "message"),
    [
        (["x", "y"], {}, {}, r"a\.jsonl: no format is recognised in the columns x, y; say which is what: --data\.columns\.prompt x --data\.columns\.completion y"),
        (["x"], {}, {}, r"--data\.columns\.text x"),
        (["1", "2"], {}, {}, r"its first row is taken for data.*--data\.columns\.prompt 1 --data\.columns\.completion 2"),
        (["a sentence of several words", "yes"], {}, {}, r"name columns by number.*--data\.columns\.prompt 1 "),
        (["messages", "prompt", "chosen", "rejected"], {}, {}, r"could be messages \(--data\.columns\.messages messages\) or preference \(--data\.columns\.prompt prompt .*rejected\)"),
        (["prompt", "completion", "question", "answer"], {}, {}, r"could be prompt_completion .* or question_answer .*prompt question"),
        (["question", "answer"], {"prompt": "quest", "completion": "answer"}, {}, r"no column 'quest' for prompt \(from data\.columns\); did you mean 'question'"),
        (["question", "answer"], {"prompt": "question"}, {}, r"data\.columns gives prompt; wanted is messages alone"),
        (["question", "answer"], {"promt": "question"}, {}, r"unknown role 'promt' in data\.columns; did you mean 'prompt'"),
        (["question", "answer"], {"prompt": "question"}, {"prompt": "{question}"}, r"prompt is given both by"),
        (["text", "label"], {}, {"prompt": "{txt}"}, r"no column 'txt' in the template of prompt \(from data\.format\); did you mean 'text'"),
        (["text", "label"], {}, {"prompt": "{text"}, r"a '\{' stands alone in the template of prompt.*a literal brace twice"),
        (["text", "label"], {}, {"prompt": "text}"}, r"a '\}' stands alone"),
        (["text", "label"], {}, {"prompt": "{}"}, r"no column '' in the template"),
        (["text", "label"], {}, {"prompt": " "}, r"template of prompt .* is ' '; a text is wanted"),
        (["text", "label"], {}, {"chosen": "{text}"}, r"data\.format gives chosen; wanted is"),
    ],
)  # fmt: skip
def test_what_cannot_be_told(columns, mapping, templates, message):
    with pytest.raises(UserError, match=message) as error:
        detect_format(columns, mapping, "a.jsonl", templates)
    assert "\n" not in str(error.value)


def test_bad_values_in_templates():
    made = detect({"text": "a", "label": "b"}, None, {"prompt": "Review: {text}"})
    for value, message in ((None, "'text', in the template of prompt, is null"), (["a"], "is list, not text")):
        with pytest.raises(BadRowError, match=message):
            made.example({"text": value, "label": "b"})
    with pytest.raises(BadRowError, match="there is no column 'text'"):
        made.example({"label": "b"})


def test_columns_by_position():
    assert by_position({"prompt": 1, "completion": "2"})
    assert not by_position({"prompt": "1", "completion": "answer"})
    assert not by_position({"prompt": 0}) and not by_position({})


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-l I-l I-l O", "a b c: l"),
        ("I-l I-l O I-p", "a b: l; d: p"),
        ("B-l B-l I-p O", "a: l; b: l; c: p"),
        ("B-l I-l E-l S-p", "a b c: l; d: p"),
        ("B-l L-l U-p I-p", "a b: l; c: p; d: p"),
        ("O O O O", "none"),
        ("B-creative-work I-creative-work O O", "a b: creative-work"),
    ],
)
def test_tags_to_entities(tags, expected):
    assert entity_text(["a", "b", "c", "d"], tags.split()) == expected


@settings(max_examples=60, deadline=None, database=None)
@given(st.lists(st.tuples(st.text(min_size=1), st.sampled_from(["O", "B-x", "I-x", "E-x", "S-y", "I-y"]))))
def test_entities_hold_every_tagged_token_in_order(tagged):
    found = entities([token for token, _ in tagged], [tag for _, tag in tagged])
    assert " ".join(words for words, _ in found) == " ".join(token for token, tag in tagged if tag != "O")


@pytest.mark.parametrize(
    ("name", "mapping", "format_name", "count"),
    [
        ("gsm8k", {}, "question_answer", 7473),
        ("ner", {}, "tokens_tags", 3394),
        ("rt-polarity", {}, "text_label", 10662),
        ("wiki-split", {"prompt": 1, "completion": 2}, "mapped", 5000),
        ("human-eval", {"prompt": "prompt", "completion": "canonical_solution"}, "mapped", 164),
        ("tinyshakespeare.txt", {}, "text", 32777),
    ],
)
def test_public_data(public, name, mapping, format_name, count):
    raw = read_data(public / "data" / name, headless=by_position(mapping))
    table = raw.splits.get("train") or raw.splits["test"]
    made = detect_format(table.columns, mapping, table.label, rows=table.first_rows)
    assert made.name == format_name
    found = [made.example(record.row) for record in table.records()]
    assert len(found) == count
    if name == "ner":
        assert any(one.reference == "Empire State Building: location; ESB: location" for one in found)


def test_a_file_without_a_head_says_how_to_name_its_columns(public):
    table = read_data(public / "data" / "wiki-split" / "test.tsv").splits["train"]
    with pytest.raises(UserError, match=re.escape("--data.columns.prompt 1 --data.columns.completion 2")):
        detect_format(table.columns, {}, table.label)
