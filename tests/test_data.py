import json
from collections import Counter

import pytest
from conftest import write_jsonl

from hf_peft_recipes import get_recipe
from hf_peft_recipes.data import Renderer
from hf_peft_recipes.data.preparation import tokenize_data
from hf_peft_recipes.data.reading import read_examples
from hf_peft_recipes.data.rendering import IGNORED
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.models import load_tokenizer

SECTION = {
    "dataset": None, "split": "train", "validation_size": 0.1, "validation_rows": 200, "on_bad_row": "error",
    "columns": None, "format": None, "loss_on": "auto", "overlong": "split", "min_supervised_tokens": 1, "max_dropped": 1.0,
    "max_truncated": 1.0, "max_leaked": 1.0,
}  # fmt: skip


def read(dataset, held_out=None, max_rows=None, seed=0, **section):
    return read_examples({**SECTION, **section, "dataset": dataset}, held_out, max_rows, seed)


def train(examples):
    return list(examples.sources[0].corpus)


def tokenize(examples, renderer, max_length, overlong="split", **section):
    return tokenize_data(examples, renderer, max_length, {**SECTION, "overlong": overlong, **section})


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(None)


@pytest.fixture
def renderer(tokenizer):
    return Renderer(tokenizer, [tokenizer.eos_token_id], "auto", "\n")


@pytest.mark.parametrize(
    ("row", "name", "messages"),
    [
        ({"prompt": "a", "completion": "b"}, "prompt_completion", [("user", "a"), ("assistant", "b")]),
        ({"question": "a", "answer": "b"}, "question_answer", [("user", "a"), ("assistant", "b")]),
        ({"text": "a", "label": "pos"}, "text_label", [("user", "a"), ("assistant", "pos")]),
        ({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"},
                       {"role": "assistant", "content": "b"}]}, "messages",
         [("system", "s"), ("user", "a"), ("assistant", "b")]),
        ({"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
         "prompt_completion", [("user", "a"), ("assistant", "b")]),
    ],
)  # fmt: skip
def test_formats_are_recognised(row, name, messages):
    examples = read([row] * 3)
    assert examples.format == name
    assert [(turn["role"], turn["content"]) for turn in examples.pick([0])[0][1].messages] == messages


def test_plain_text():
    assert read([{"text": "once upon"}] * 2).pick([0])[0][1].text == "once upon"


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("a.jsonl", '{"text": "x"}\n\n{"text": "y\\u2028z"}\n', 2),
        ("a.jsonl", '\ufeff{"text": "x"}\r\n{"text": "y"}\r\n', 2),
        ("a.json", '[{"text": "x"}, {"text": "y"}]', 2),
        ("a.json", '{"data": [{"text": "x"}, {"text": "y"}]}', 2),
        ("a.csv", 'question,answer\n"a, b","line\nbreak"\nc,d\n', 2),
        ("a.tsv", "question\tanswer\na\tb\nc\td\n", 2),
        ("a.txt", "one\n\ntwo\n", 2),
    ],
)
def test_file_types(tmp_path, name, content, rows):
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    examples = read(str(tmp_path / name), validation_size=0)
    assert examples.train_rows == rows


def test_a_folder_of_labels(tmp_path):
    (tmp_path / "pos.txt").write_text("good\nfine\n\nnice\n")
    (tmp_path / "neg.txt").write_text("bad\n")
    examples = read(str(tmp_path), validation_size=0)
    assert examples.format == "text_label"
    assert Counter(example.reference for example in train(examples)) == {"pos": 3, "neg": 1}


def test_a_folder_of_splits(tmp_path):
    for name, count in (("train", 5), ("dev", 2), ("test", 3)):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"question": f"{name} {n}", "answer": "x"} for n in range(count)])
    examples = read(str(tmp_path))
    assert (examples.train_rows, len(examples.validation), len(examples.held_out)) == (5, 2, 3)
    assert examples.held_out_split == "test"
    assert len(read(str(tmp_path), held_out="validation").held_out) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", r"'.*a\.jsonl' is empty"),
        ("a.jsonl", b"\n\n", r"is empty"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', r"a\.jsonl:2: broken JSON"),
        ("a.jsonl", b'{"text": "x"}\n[1]\n', r"a\.jsonl:2: a row is a mapping .* not list"),
        ("a.jsonl", b'{"text": "x", "text": "y"}\n', r"a\.jsonl:1: .*column 'text' stands twice"),
        ("a.jsonl", '{"text": "x"}\n{"text": "caf\xe9"}\n'.encode("latin-1"), r"a\.jsonl:2: not UTF-8 \(byte 0xe9\)"),
        ("a.json", b'{"rows": 1}', r"a\.json: a list of rows is wanted"),
        ("a.json", b"[{]", r"a\.json:1: broken JSON"),
        ("a.csv", b"a,b\n1,2,3\n", r"a\.csv:2: the row has another number of fields"),
        ("a.csv", b"a,b\n1\n", r"a\.csv:2: the row has another number of fields"),
        ("a.jsonl", b'{"x": "1", "y": "2"}\n', r"no format is recognised in the columns x, y; .*--data.columns.prompt"),
        ("a.jsonl", b'{"text": "x"}\n{"text": null}\n{"text": 3}\n', r"a\.jsonl:2: 'text' is null.*a\.jsonl:3: .*\(2 bad"),
        ("a.jsonl", b'{"messages": [{"role": "user", "content": null}]}\n', r'a\.jsonl:1: "content" of message 1 is null'),
        ("a.jsonl", b'{"messages": [{"role": "bot", "content": "x"}]}\n', r'"role" of message 1 is \'bot\''),
        ("a.jsonl", b'{"messages": []}\n', r"'messages' is empty"),
        ("a.jsonl", b'{"question": "q", "answer": "  "}\n', r"'answer' is empty"),
        ("a.jsonl", b'{"prompt":"p","completion":"c","question":"q","answer":"a"}\n', r"could be prompt_completion .* or "),
    ],
)  # fmt: skip
def test_bad_files_name_file_and_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(str(tmp_path / name))


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("./missing.jsonl", r"no such file or folder"),
        ("/missing/folder", r"no such file or folder"),
        ([], r"is empty"),
        (7, r"not int"),
    ],
)
def test_missing_data(dataset, message):
    with pytest.raises(UserError, match=message):
        read(dataset)


def test_a_near_file_is_suggested(tmp_path):
    write_jsonl(tmp_path / "chats.jsonl", [{"text": "x"}])
    with pytest.raises(UserError, match=r"did you mean 'chats.jsonl'"):
        read(str(tmp_path / "chat.jsonl"))


def test_unknown_columns_and_splits(rows):
    with pytest.raises(UserError, match=r"no column 'quest' for prompt .*did you mean 'question'"):
        read(rows, columns={"prompt": "quest", "completion": "answer"})
    with pytest.raises(UserError, match=r"no split 'trian' \(from data.split\); did you mean 'train'"):
        read(rows, split="trian")
    with pytest.raises(UserError, match=r"no split 'test' \(from evaluation.split\)"):
        read(rows, held_out="test")
    with pytest.raises(UserError, match=r"data.columns gives prompt; wanted is"):
        read(rows, columns={"prompt": "question"})


def test_rows_that_were_set_aside_are_the_validation_split(rows):
    found = read(rows, held_out="validation", validation_size=0.25)
    assert found.held_out == found.validation
    assert len(found.held_out) == 10
    with pytest.raises(UserError, match=r"no split 'validation' \(from evaluation.split\)"):
        read(rows, held_out="validation", validation_size=0.0)


def test_bad_rows_can_be_dropped_and_are_counted(rows, renderer):
    examples = read([*rows, {"question": "q", "answer": None}], on_bad_row="drop", validation_size=0)
    ledger = tokenize(examples, renderer, None, "error").ledger()
    assert ledger["rows"] == {"kept": 40, "split": 0, "truncated": 0, "dropped": 1}
    assert ledger["reasons"] == {"'answer' is null, not text": 1}


def test_hold_out_is_deterministic_and_disjoint(rows):
    first, second, other = read(rows), read(rows), read(rows, seed=1)
    assert first.validation == second.validation
    assert first.validation != other.validation
    assert len(first.validation) == 4
    assert {example.reference for example in first.validation}.isdisjoint({e.reference for e in train(first)})
    # How many are scored never changes what is trained on.
    assert train(read(rows, max_rows=2)) == train(first)


def test_loss_stands_on_the_answer_and_its_end(renderer, tokenizer):
    example = read([{"question": "What?", "answer": "That."}] * 2).pick([0])[0][1]
    row = renderer.row(example)
    supervised = [token for token, label in zip(row.input_ids, row.labels, strict=True) if label != IGNORED]
    assert tokenizer.decode(supervised) == "That.<|end|>"
    prompt = renderer.prompt(example)
    assert row.input_ids[: len(prompt)] == prompt, "what is trained on is not what is served"
    assert all(label == IGNORED for label in row.labels[: len(prompt)])


def test_every_assistant_turn_or_the_last(tokenizer):
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    example = read([row] * 2).pick([0])[0][1]

    def supervised(loss_on):
        made = Renderer(tokenizer, [tokenizer.eos_token_id], loss_on, "\n").row(example)
        return tokenizer.decode([i for i, label in zip(made.input_ids, made.labels, strict=True) if label != IGNORED])

    assert supervised("assistant") == "b<|end|>d<|end|>"
    assert supervised("last_turn") == "d<|end|>"
    assert supervised("all").count("<|end|>") == 4


def test_earlier_answers_in_the_prompt_are_context(tokenizer, renderer):
    prompt = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    row = {"prompt": prompt, "completion": [{"role": "assistant", "content": "d"}]}
    made = renderer.row(read([row] * 2).pick([0])[0][1])
    assert tokenizer.decode([label for label in made.labels if label != IGNORED]) == "d<|end|>"


def test_no_answer_is_refused():
    with pytest.raises(UserError, match="no assistant turn to learn from"):
        read([{"messages": [{"role": "user", "content": "a"}]}] * 2)


@pytest.fixture
def long_examples():
    return read([{"question": "short", "answer": "x " * 30}] * 4, validation_size=0)


@pytest.mark.parametrize(
    ("overlong", "rows", "longest"),
    [
        ("split", {"kept": 4, "split": 4, "truncated": 0, "dropped": 0}, 16),
        ("truncate", {"kept": 4, "split": 0, "truncated": 4, "dropped": 0}, 16),
    ],
)
def test_overlong_rows(long_examples, renderer, overlong, rows, longest):
    whole = tokenize(long_examples, renderer, None, "error").ledger()["tokens"]
    prepared = tokenize(long_examples, renderer, 16, overlong)
    assert prepared.ledger()["rows"] == rows
    assert prepared.ledger()["lengths"]["max"] == longest
    if overlong == "split":
        assert prepared.ledger()["tokens"] == whole, "splitting lost tokens"
    else:
        assert prepared.ledger()["tokens"]["total"] == 4 * 16


def test_overlong_rows_dropped_or_refused(long_examples, renderer):
    with pytest.raises(UserError, match=r"no row is left to train on \(4 × too long for max_length\)"):
        tokenize(long_examples, renderer, 16, "drop")
    with pytest.raises(UserError, match=r"row 0 of split 'train': the row has \d+ tokens and max_length is 16"):
        tokenize(long_examples, renderer, 16, "error")


def test_a_prompt_that_fills_the_row_is_counted(renderer):
    rows = [{"question": "word " * 40, "answer": "x"}, {"question": "q", "answer": "y"}]
    prepared = tokenize(read(rows, validation_size=0), renderer, 16, "truncate")
    assert prepared.ledger()["rows"]["dropped"] == 1
    assert prepared.ledger()["reasons"] == {"fewer than 1 tokens to learn from within max_length": 1}


def test_embedded_data_are_balanced_and_leak_nothing():
    examples = read(None)
    assert examples.held_out_split == "test"
    for part, count in ((train(examples), 1200), (examples.validation, 200), (examples.held_out, 200)):
        assert len(part) == count
        assert Counter(example.reference for example in part) == {"positive": count / 2, "negative": count / 2}
    texts = [
        example.messages[0]["content"]
        for part in (train(examples), examples.validation, examples.held_out)
        for example in part
    ]
    assert len(set(texts)) == len(texts)
    question = "Is this review positive or negative?"
    assert all(text.endswith(question) for text in texts)
    assert not any(
        "positive" in text.replace(question, "") or "negative" in text.replace(question, "") for text in texts
    )


def test_datasets_objects(rows):
    from datasets import Dataset, DatasetDict

    table = Dataset.from_list(rows)
    assert read(table).train_rows == 36
    both = read(DatasetDict(train=table, validation=table.select(range(3))))
    assert (both.train_rows, len(both.validation)) == (40, 3)
    assert read(table).fingerprint.startswith("datasets:")


def test_fingerprint_follows_the_content(tmp_path, rows):
    first = read(str(write_jsonl(tmp_path / "a.jsonl", rows))).fingerprint
    changed = read(str(write_jsonl(tmp_path / "a.jsonl", [*rows[:-1], {"question": "q", "answer": "a"}]))).fingerprint
    assert first.startswith("sha256:")
    assert first != changed
    assert json.dumps(first)


def test_held_out_rows_of_labels_that_take_turns_have_all_of_them():
    rows = [{"text": f"row {n}", "label": "odd" if n % 2 else "even"} for n in range(400)]
    section = {**get_recipe("lora").resolved.section("data"), "validation_size": 0.5, "validation_rows": None}
    held_out = read_examples(section, None, 50, 1, rows).held_out
    whole = read_examples({**section, "validation_size": 0}, None, 50, 1, {"train": rows[:10], "test": rows}).held_out
    assert {row.reference for row in held_out} == {row.reference for row in whole} == {"odd", "even"}
    assert len(whole) == 50
