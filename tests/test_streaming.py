"""Streamed data: the first step without a look at all rows, and yet no row lost unseen."""

import itertools

import pytest
from conftest import FAST, write_jsonl
from test_data import SECTION

from hf_peft_recipes import get_recipe
from hf_peft_recipes.data import Renderer, read, tokenize
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.models import load_tokenizer

STREAM = {**SECTION, "streaming": True}


def chats(number):
    return [{"question": f"What is {n} plus {n}?", "answer": f"It is {2 * n}."} for n in range(number)]


@pytest.fixture(scope="module")
def renderer():
    tokenizer = load_tokenizer(None)
    return Renderer(tokenizer, [tokenizer.eos_token_id], "auto", "\n")


def streamed(path, **section):
    return read({**STREAM, "dataset": str(path), **section}, {"max_rows": None}, 0)


def decoded(renderer, rows, number):
    """Return the texts of the first rows."""
    ids = [row["input_ids"] for row in itertools.islice(rows, number)]
    return renderer.tokenizer.batch_decode(ids, skip_special_tokens=True)


def test_a_stream_begins_anew_in_another_order(tmp_path, renderer):
    examples = streamed(write_jsonl(tmp_path / "few.jsonl", chats(50)))
    kept = 50 - len(examples.held_out)
    prepared = tokenize(examples, renderer, None, STREAM, 0)
    texts = decoded(renderer, prepared.train, 2 * kept + 1)
    first, second = texts[:kept], texts[kept : 2 * kept]
    assert set(first) == set(second) and len(set(first)) == kept and first != second
    assert prepared.ledger()["rows"]["kept"] == kept, "rows of later passes are counted as if they were others"


def test_every_row_is_seen_once_and_counted(tmp_path, renderer):
    examples = streamed(write_jsonl(tmp_path / "many.jsonl", chats(3000)))
    assert len(examples.held_out) == 100
    prepared = tokenize(examples, renderer, None, STREAM, 0)
    texts = decoded(renderer, prepared.train, 2900)
    questions = {row["question"] for row in chats(3000)[100:]}
    assert len(texts) == 2900
    assert {text.split("?")[0] + "?" for text in texts} == questions, "held-out rows are trained on, or others are not"
    ledger = prepared.ledger()
    assert (ledger["rows"]["kept"], ledger["streamed"]) == (2900, True)
    assert ledger["tokens"]["supervised"] > 0


def test_nothing_but_the_first_rows_is_read_beforehand(tmp_path, renderer, monkeypatch):
    from hf_peft_recipes.data import readers

    path = write_jsonl(tmp_path / "many.jsonl", chats(20_000))
    read_lines = []
    line_record = readers.line_record
    monkeypatch.setattr(readers, "line_record", lambda *words: read_lines.append(1) or line_record(*words))
    prepared = tokenize(streamed(path), renderer, None, STREAM, 0)
    assert next(iter(prepared.train))["input_ids"]
    assert len(read_lines) < 6_000


def test_a_bad_row_stops_the_stream_or_is_counted(tmp_path, renderer):
    rows = chats(1500)
    rows[1200]["answer"] = None
    path = write_jsonl(tmp_path / "bad.jsonl", rows)
    with pytest.raises(UserError, match=r"bad\.jsonl:1201: 'answer' is null"):
        list(tokenize(streamed(path), renderer, None, STREAM, 0).train)
    dropping = {**STREAM, "on_bad_row": "drop"}
    prepared = tokenize(streamed(path, on_bad_row="drop"), renderer, None, dropping, 0)
    assert len(set(decoded(renderer, prepared.train, 1399))) == 1399
    assert list(prepared.ledger()["reasons"].values()) == [1]


def test_a_run_trains_on_a_stream(tmp_path):
    path = write_jsonl(tmp_path / "many.jsonl", chats(3000))
    keywords = {"dataset": str(path), "data.streaming": True, **FAST}
    with pytest.raises(UserError, match=r"data\.streaming needs --max_steps"):
        get_recipe("lora", **keywords).train(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    result = get_recipe("lora", max_steps=3, **keywords).train(tmp_path / "out", progress=False)
    assert result.status == "done"
    assert 0 < result.record["data"]["ledger"]["rows"]["kept"] <= 2900
    assert result.metrics["rows"] == 8
    from hf_peft_recipes.trained import evaluate

    again = evaluate(result.load(), result.record, with_base=False)
    assert again["after"]["loss"] == pytest.approx(result.metrics["after"]["loss"], rel=1e-3)


def test_streams_of_datasets(renderer):
    from datasets import Dataset

    rows = Dataset.from_list(chats(1500)).to_iterable_dataset()
    examples = read({**STREAM, "dataset": None}, {"max_rows": 8}, 0, rows)
    assert len(examples.held_out) == 8
    assert len(list(itertools.islice(tokenize(examples, renderer, None, STREAM, 0).train, 50))) == 50
