"""Files, folders and objects to tables by split, or one line that says what is wrong."""

import pytest
from conftest import write_jsonl

from hf_peft_recipes.data.sources import read_data
from hf_peft_recipes.errors import UserError

CHATS = [
    {"messages": [{"role": "user", "content": f"é {n}\n"}, {"role": "assistant", "content": "y" * n}]}
    for n in range(40)
]


def folder(tmp_path, *names):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name.endswith(".txt"):
            (tmp_path / name).write_text(f"text of {name}\n")
        else:
            write_jsonl(tmp_path / name, [{"text": name}])
    return {split: [record.row["text"] for record in table.records()]
            for split, table in read_data(tmp_path).splits.items()}  # fmt: skip


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train.jsonl", "dev.jsonl", "README.txt", ".hidden.jsonl"], {"train": ["train.jsonl"], "validation": ["dev.jsonl"]}),
        (["wnut.train.jsonl", "wnut.test.jsonl"], {"train": ["wnut.train.jsonl"], "test": ["wnut.test.jsonl"]}),
        (["train-00001-of-00002.jsonl", "train-00000-of-00002.jsonl"], {"train": ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"]}),
        (["data/train.jsonl", "data/val.jsonl"], {"train": ["train.jsonl"], "validation": ["val.jsonl"]}),
        (["all.jsonl"], {"train": ["all.jsonl"]}),
        (["x-00000-of-00002.jsonl", "x-00001-of-00002.jsonl"], {"train": ["x-00000-of-00002.jsonl", "x-00001-of-00002.jsonl"]}),
        (["pos.txt", "neg.txt", "LICENSE.txt"], {"train": ["text of neg.txt", "text of pos.txt"]}),
    ],
)  # fmt: skip
def test_folders(tmp_path, names, expected):
    found = folder(tmp_path, *names)
    assert {split: [text.removeprefix("data/") for text in texts] for split, texts in found.items()} == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "the folder is empty"),
        (["train.xml"], r"no file in the folder ends in \.jsonl"),
        (["a.jsonl", "b.jsonl"], r"which file is which\?.*found a\.jsonl, b\.jsonl"),
        (["train.jsonl", "more.jsonl"], r"more\.jsonl names no split though others do"),
        (["train-test.jsonl", "dev.jsonl"], r"train-test\.jsonl names test and train"),
        (["train.jsonl", "train.txt"], r"train\.jsonl and train\.txt are both train, of different types"),
        (["train-00001-of-00003.jsonl"], r"2 of 3 files missing: train-00000-of-00003\.jsonl"),
    ],
)
def test_folders_that_are_unclear(tmp_path, names, message):
    with pytest.raises(UserError, match=message):
        folder(tmp_path, *names)


def test_a_folder_of_labels(tmp_path):
    (tmp_path / "pos.txt").write_text(" good \n\nfine\n")
    (tmp_path / "neg.txt").write_text("bad\n")
    table = read_data(tmp_path).splits["train"]
    assert [(record.place, dict(record.row)) for record in table.records()] == [
        ("neg.txt:1", {"text": "bad", "label": "neg"}),
        ("pos.txt:1", {"text": "good", "label": "pos"}),
        ("pos.txt:3", {"text": "fine", "label": "pos"}),
    ]


def test_a_label_without_lines(tmp_path):
    (tmp_path / "pos.txt").write_text("good\n")
    (tmp_path / "neg.txt").write_text(" \n")
    with pytest.raises(UserError, match=r"neg\.txt' is empty"):
        read_data(tmp_path)


def test_what_datasets_saves(tmp_path):
    from datasets import Dataset, DatasetDict

    made = Dataset.from_list(CHATS)
    made.save_to_disk(str(tmp_path / "one"), num_shards=3)
    DatasetDict(train=made, dev=made.select(range(2))).save_to_disk(str(tmp_path / "two"))
    one, two = read_data(tmp_path / "one"), read_data(str(tmp_path / "two"))
    assert [record.row for record in one.splits["train"].records()] == CHATS
    assert {split: sum(1 for _ in table.records()) for split, table in two.splits.items()} == {
        "train": 40,
        "validation": 2,
    }
    next((tmp_path / "one").glob("*.arrow")).unlink()
    with pytest.raises(UserError, match=r"which state\.json names, is missing"):
        read_data(tmp_path / "one")


def test_objects():
    from datasets import Dataset, DatasetDict

    made = Dataset.from_list(CHATS)
    for given_rows in (
        CHATS,
        made,
        made.to_iterable_dataset(),
        made.with_format("numpy"),
        {"train": CHATS},
        DatasetDict(train=made),
    ):
        raw = read_data(given_rows)
        assert raw.splits["train"].columns == ("messages",)
        assert [record.row for record in raw.splits["train"].records()] == CHATS
        assert raw.fingerprint.startswith(("sha256:", "datasets:", "first-rows-sha256:"))
    mixed = list(read_data([{"a": 1}, 3]).splits["train"].records())
    assert (mixed[1].place, mixed[1].problem[:28]) == ("row 1 of split 'train'", "a row is a mapping of column")


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("x" * 5000, r"'xxx.*…' cannot be read: File name too long"),
        ("", "the data set's name is empty"),
        ("a\0b", "cannot be read|no Hub id"),
        ("what is this?", "no such file or folder, and no Hub id"),
        ("two\nlines", r"'two\\nlines': no such file"),
        ("~nobody-has-this-name/x", "cannot be read|no such file"),
        ("missing.csv.gz", "no such file or folder"),
        ({"dev": [{"a": 1}], "validation": [{"a": 2}]}, "'dev' and 'validation' of the data set are both validation"),
        ({"train": "rows"}, "the split 'train' is str"),
        ({}, "no splits"),
        (iter([]), "not list_iterator"),
        (b"rows", "not bytes"),
    ],
)
def test_data_sets_that_are_none(dataset, message):
    with pytest.raises(UserError, match=message) as error:
        read_data(dataset)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_the_fingerprint_covers_names_and_bytes(tmp_path):
    for name, content in (("a.jsonl", b'{"a": 1}\n'), ("b.jsonl", b'{"a": 1}\n'), ("c.jsonl", b'{"a": 1}\n\n')):
        (tmp_path / name).write_bytes(content)
    prints = [read_data(tmp_path / name).fingerprint for name in ("a.jsonl", "b.jsonl", "c.jsonl")]
    assert len(set(prints)) == 3
    assert prints[0] == read_data(tmp_path / "a.jsonl").fingerprint


@pytest.mark.parametrize(
    ("name", "count", "columns"),
    [
        ("gsm8k/train.jsonl", 7473, ("question", "answer")),
        ("ner/wnut17.train.conll", 3394, ("tokens", "tags")),
        ("ner/wnut17.test.conll", 1287, ("tokens", "tags")),
        ("wiki-split/test.tsv", 5000, ("1", "2")),
        ("human-eval/HumanEval.jsonl.gz", 164, ("task_id", "prompt", "canonical_solution", "test", "entry_point")),
        ("tinyshakespeare.txt", 32777, ("text",)),
        ("rt-polarity", 10662, ("text", "label")),
    ],
)
def test_public_data(public, name, count, columns):
    table = read_data(public / "data" / name).splits["train"]
    found = list(table.records())
    assert [record for record in found if record.problem] == []
    assert (len(found), set(table.columns)) == (count, set(columns))


def test_the_public_folder_of_splits(public):
    assert set(read_data(public / "data" / "ner").splits) == {"train", "test"}
