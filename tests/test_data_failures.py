"""How runs fail on their data today, row by row of the field's list, and what happens here instead."""

import copy
import json

import pytest
from conftest import write_jsonl
from test_data import read, tokenize

from hf_peft_recipes.data import Renderer
from hf_peft_recipes.data.checks import check_serving
from hf_peft_recipes.data.formats import Example
from hf_peft_recipes.data.rendering import IGNORED
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.models import load_tokenizer


@pytest.fixture
def tokenizer():
    return copy.deepcopy(load_tokenizer(None))


@pytest.fixture
def renderer(tokenizer):
    return Renderer(tokenizer, [tokenizer.eos_token_id], "auto", "\n")


def long_prompts(number, of):
    return [{"question": ("word " * 60 if n < number else "q") + str(n), "answer": f"a{n}"} for n in range(of)]


def test_rows_without_a_token_to_learn_from_are_counted(renderer):
    ledger = tokenize(read(long_prompts(7, 16), validation_size=0), renderer, 32, "truncate").ledger()
    assert ledger["rows"] == {"kept": 9, "split": 0, "truncated": 0, "dropped": 7}


def test_and_stop_the_run_where_they_are_many(renderer):
    with pytest.raises(UserError, match=r"7 of 16 rows would be dropped \(7 × fewer than 1 tokens to learn from"):
        tokenize(read(long_prompts(7, 16), validation_size=0), renderer, 32, "truncate", max_dropped=0.01)


def test_no_row_left_is_an_error(renderer):
    with pytest.raises(UserError, match=r"no row is left to train on \(4 × fewer than 1 tokens"):
        tokenize(read(long_prompts(4, 4), validation_size=0), renderer, 32, "truncate")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"txt": "a"}], r"no format is recognised in the columns txt.*--data\.columns\.text txt"),
        ([{"text": "a"}, {"text": None}], r"a\.jsonl:2: .text. is null"),
        ([{"text": "a"}, {"text": 3}], r"a\.jsonl:2: .text. is (int|a number), not text"),
        ([], r"a\.jsonl. is empty"),
    ],
)
def test_columns_and_types(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        read(str(write_jsonl(tmp_path / "a.jsonl", rows)))


def test_pad_and_end_may_be_one_token_and_the_end_is_learned(tokenizer):
    tokenizer.pad_token = tokenizer.eos_token
    renderer = Renderer(tokenizer, [tokenizer.eos_token_id], "auto", "\n")
    example = Example(({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}))
    row = renderer.row(example)
    assert row.labels[-1] == tokenizer.eos_token_id
    assert row.labels.count(IGNORED) == len(renderer.prompt(example))
    assert all(check.ok for check in check_serving(renderer, [example]))


def test_neither_end_token_nor_template_is_one_line(tokenizer):
    tokenizer.chat_template, tokenizer.eos_token = None, None
    with pytest.raises(UserError, match="neither an end token nor a chat template: the model could never stop"):
        Renderer(tokenizer, [], "auto", "\n")


@pytest.mark.parametrize("drops", [False, True])
def test_on_the_command_line(command, tmp_path, drops):
    rows = [{"question": f"q{n}", "answer": f"a{n}"} for n in range(300)]
    rows[41] = {"question": "q", "answer": None}
    path = write_jsonl(tmp_path / "chats.jsonl", rows)
    flags = ["--on_bad_row", "drop"] if drops else []
    finished = command("inspect", "lora", "--dataset", path, "--json", *flags, cwd=tmp_path)
    if drops:
        assert json.loads(finished.stdout)["ledger"]["rows"]["dropped"] == 1
    else:
        assert finished.returncode == 2
        assert finished.stderr.startswith("error: chats.jsonl:42: ")
        assert len(finished.stderr.splitlines()) == 1
