"""Rows that cannot be used say why, in their own words; any others make an example."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_formats import CALL, A, U, detect, turns

from hf_peft_recipes.data.formats import BadRowError, detect_format


def chat(*messages, **beside):
    return {"messages": list(messages), **beside}


USER, ANSWER = turns(U, A)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": None}, "'messages' is null"),
        ({"messages": []}, "'messages' is empty"),
        ({"messages": "hi"}, "'messages' is no list of turns"),
        (chat(None), "message 1 is null, not a mapping"),
        (chat(USER, "b"), "message 2 is str, not a mapping"),
        (chat({"role": "bot", "content": "x"}), "\"role\" of message 1 is 'bot'; known: system, user, assistant, tool"),
        (chat({"content": "x"}), '"role" of message 1 is null'),
        (chat({"role": ["user"], "content": "x"}), "\"role\" of message 1 is ['user']"),
        (chat({"from": "bing", "value": "x"}), "\"from\" of message 1 is 'bing'; known: system, human"),
        (chat(USER, {"role": "assistant", "content": None}), '"content" of message 2 is null'),
        (chat(USER, {"role": "assistant", "content": 3}), '"content" of message 2 is int'),
        (chat(USER, {"role": "assistant", "content": " \n"}), '"content" of message 2, a turn of the assistant, is empty'),
        (chat({"role": "user", "content": ""}, ANSWER), '"content" of message 1, a turn of the user, is empty'),
        (chat({"role": "user", "content": []}, ANSWER), '"content" of message 1, a turn of the user, is empty'),
        (chat({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}), '"content" of message 1 holds an image; this is a text set'),
        (chat({"role": "user", "content": [{"type": "video"}]}), "\"content\" of message 1 holds a part of type 'video'"),
        (chat({"role": "user", "content": [{"type": "text", "text": None}]}), 'the text of part 1 of "content" of message 1 is null'),
        (chat({"role": "user", "content": ["a"]}), 'part 1 of "content" of message 1 is str'),
        (chat(USER, {"role": "assistant", "content": "b", "name": 3}), '"name" of message 2 is int, not text'),
        (chat(USER, ANSWER, {"role": "system", "content": "s"}), "message 3 is a system turn that is not the first"),
        (chat(USER, USER, ANSWER), "messages 1 and 2 are both user turns"),
        (chat(USER, ANSWER, ANSWER), "messages 2 and 3 are both assistant turns"),
        (chat(ANSWER, USER), "the conversation begins with an assistant turn"),
        (chat({"role": "system", "content": "s"}, ANSWER), "the conversation begins with an assistant turn"),
        (chat(USER), "no assistant turn to learn from"),
        (chat(USER, {"role": "tool", "content": "3"}), "message 2 is a tool turn, but no tool was called before it"),
        (chat(USER, ANSWER, {"role": "tool", "content": "3"}), "message 3 is a tool turn"),
        (chat({**USER, "tool_calls": [CALL]}, ANSWER), 'message 1 is a user turn with "tool_calls"'),
        (chat(USER, {"role": "assistant", "tool_calls": [{"function": {"name": None}}]}), '"name" of call 1 of message 2 is missing'),
        (chat(USER, {"role": "assistant", "tool_calls": [None]}), "call 1 of message 2 is null"),
        (chat(USER, {"role": "assistant", "tool_calls": "{x"}), '"tool_calls" of message 2 is broken JSON'),
        (chat(USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{x"}]}), '"arguments" of call 1 of message 2 is broken JSON'),
        (chat(USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": [1]}]}), '"arguments" of call 1 of message 2 is list, not a mapping'),
        (chat(USER, ANSWER, tools="[{"), "'tools' is broken JSON"),
        (chat(USER, ANSWER, tools={"name": "f"}), "'tools' is dict, not a list"),
        (chat(USER, ANSWER, tools=["f"]), "tool 1 of 'tools' is str"),
        (chat(USER, ANSWER, tools=[{"type": "function"}]), "\"name\" of tool 1 of 'tools' is missing"),
        (chat({"role": "system", "content": "s"}, USER, ANSWER, system="t"), "a system turn and another text in 'system'"),
        (chat(USER, {**ANSWER, "weight": 0}), 'each has "weight" 0'),
        (chat(USER, ANSWER, USER, {**ANSWER, "weight": 0}), 'message 4 has "weight" 0 though'),
        ({"prompt": None, "completion": "b"}, "'prompt' is null, not text"),
        ({"prompt": "a", "completion": " "}, "'completion' is empty"),
        ({"prompt": "a", "completion": True}, "'completion' is bool, not text"),
        ({"prompt": "a", "completion": float("nan")}, "'completion' is null, not text"),
        ({"prompt": "a", "completion": turns(U)}, "messages 1 and 2 are both user turns"),
        ({"prompt": [{"role": "user", "content": None}], "completion": "b"}, "\"content\" of message 1 of 'prompt' is null"),
        ({"instruction": "a", "input": 3, "output": "b"}, "'input' is int, not text"),
        ({"text": 3}, "'text' is int, not text"),
        ({"prompt": "a", "completion": "b", "label": None}, "'label' is null, neither true nor false"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "'chosen' and 'rejected' are the same"),
        ({"prompt": "a", "chosen": "b", "rejected": None}, "are str and NoneType|'chosen' and 'rejected' are str and null, not alike"),
        ({"prompt": "a", "chosen": None, "rejected": None}, "'chosen' is null"),
        ({"chosen": turns(U, A), "rejected": turns(U, A)}, "are the same"),
        ({"chosen": turns(U, A), "rejected": turns(("u", "x"), A)}, "have no first turn in common"),
        ({"chosen": turns(U, A, ("u", "c"), A), "rejected": turns(U, A)}, "is only the beginning of the other"),
        ({"chosen": turns(U, A, ("u", "c"), A), "rejected": turns(U, A, ("u", "d"), A)}, "part at message 3, which is no answer"),
        ({"prompt": "other", "chosen": turns(U, A), "rejected": turns(U, ("a", "c"))}, "do not begin with 'prompt'"),
        ({"chosen": "yes", "rejected": "no"}, "no beginning in common"),
        ({"tokens": ["a"], "tags": []}, "'tags' is empty"),
        ({"tokens": ["a"], "tags": ["O", "O"]}, "1 tokens have 2 tags"),
        ({"tokens": ["a"], "tags": [3]}, "'tags' holds int, not text; give the tags by name"),
        ({"tokens": ["a", "b"], "tags": ["NN", "O"]}, "the tag 'NN' of token 1 ('a') is neither O nor B-kind"),
    ],
)  # fmt: skip
def test_bad_rows_say_why(row, message):
    made = detect_format(list(row), {}, "a.jsonl")
    with pytest.raises(BadRowError) as error:
        made.example(row)
    assert any(part in str(error.value) for part in message.split("|")), str(error.value)
    assert "\n" not in str(error.value)


def test_a_row_without_the_column():
    with pytest.raises(BadRowError, match="there is no column 'answer' in the row"):
        detect({"question": "a", "answer": "b"}).example({"question": "a"})


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["user", "assistant", "tool", "[]", "{}"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "tool_calls", "function", "name", "arguments", "type", "text", "weight"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
LAYOUTS = [
    ["messages", "tools", "system"], ["conversations"], ["prompt", "completion"], ["prompt", "chosen", "rejected"], ["chosen", "rejected"],
    ["prompt", "completion", "label"], ["instruction", "input", "output"], ["tokens", "tags"], ["text", "label"], ["text"],
]  # fmt: skip


@pytest.mark.parametrize("columns", LAYOUTS, ids="+".join)
@settings(max_examples=80, deadline=None, database=None)
@given(data=st.data())
def test_any_values_make_an_example_or_a_bad_row(columns, data):
    row = {column: data.draw(ANY) for column in columns}
    try:
        found = detect_format(columns, {}, "a.jsonl").example(row)
    except BadRowError as error:
        assert "\n" not in str(error)
        return
    assert (found.text is None) == bool(found.messages)
    for turn in (*found.messages, *found.rejected):
        assert isinstance(turn["content"], str)
        assert turn["content"].strip() or turn["role"] in ("system", "tool") or turn.get("tool_calls")
    assert found.reference is not None or found.text is not None
    assert 0 <= found.supervised_from < max(1, len(found.messages))
