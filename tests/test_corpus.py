"""What becomes of rows on their way to tokens: read in pieces, counted, cut, refused, cached, told from held-out ones."""

import json

import pytest
from conftest import write_jsonl
from test_data import SECTION, read, tokenize

from hf_peft_recipes.data import Renderer, cache, preparation, readers, workers
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.models import load_tokenizer


def many(number):
    return [{"question": f"What is {n} plus {n}?", "answer": f"It is {2 * n}."} for n in range(number)]


@pytest.fixture(scope="module")
def renderer():
    tokenizer = load_tokenizer(None)
    return Renderer(tokenizer, [tokenizer.eos_token_id], "auto", "\n")


@pytest.fixture
def pieces(tmp_path, monkeypatch):
    """Return a file of 500 rows that is read in many chunks."""
    monkeypatch.setattr(readers, "CHUNK_BYTES", 2000)
    return str(write_jsonl(tmp_path / "many.jsonl", many(500)))


def test_picking_and_parts_are_the_rows_in_order(pieces):
    train = read(pieces).sources[0].corpus
    assert len(train.chunks) > 10
    everything = [example.reference for example in read(pieces, validation_size=0).sources[0].corpus]
    assert everything == [row["answer"] for row in many(500)]
    assert [example.reference for example in train.pick([0, 7, 499])] == ["It is 0.", "It is 14.", "It is 998."]
    assert len(train.held) == 50
    kept = [answer for number, answer in enumerate(everything) if number not in train.held]
    for number in (1, 2, 5):
        assert [example.reference for part in train.parts(number) for example in part] == kept
        assert sum(len(part) for part in train.parts(number)) == len(train) == 450


def test_processes_find_what_one_process_finds(pieces, tmp_path, renderer, monkeypatch):
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(preparation, "KEPT_IN_MEMORY", 0)
    alone = tokenize(read(pieces), renderer, 32)
    monkeypatch.setattr(workers, "WORTH_A_PROCESS", 1)
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path / "other")
    started = []
    popen = workers.subprocess.Popen
    monkeypatch.setattr(workers.subprocess, "Popen", lambda *a, **k: started.append(1) or popen(*a, **k))
    together = tokenize(read(pieces), renderer, 32)
    assert len(started) == 4, "two to look at the rows, two to tokenise them"
    assert together.ledger() == alone.ledger()
    assert together.train.to_dict() == alone.train.to_dict()


def test_errors_come_back_from_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "CHUNK_BYTES", 2000)
    monkeypatch.setattr(workers, "WORTH_A_PROCESS", 1)
    rows = many(500)
    rows[3]["answer"] = rows[490]["answer"] = None
    with pytest.raises(UserError, match=r"bad\.jsonl:4: .*bad\.jsonl:491: .*\(2 bad rows"):
        read(str(write_jsonl(tmp_path / "bad.jsonl", rows)))


def test_the_second_time_is_from_the_cache(pieces, tmp_path, renderer, monkeypatch):
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(preparation, "KEPT_IN_MEMORY", 0)
    first = tokenize(read(pieces), renderer, 32)
    monkeypatch.setattr(preparation, "in_processes", None)
    second = tokenize(read(pieces), renderer, 32)
    assert second.ledger() == first.ledger()
    assert second.train.to_dict() == first.train.to_dict()
    assert len(list((tmp_path / "cache").iterdir())) == 1
    # Whatever makes rows other rows makes them anew.
    tokenizer = load_tokenizer(None)
    for changed in (
        lambda: tokenize(read(pieces), renderer, 31),
        lambda: tokenize(read(pieces, seed=1), renderer, 32),
        lambda: tokenize(read(pieces), Renderer(tokenizer, [tokenizer.eos_token_id], "all", "\n"), 32),
        lambda: tokenize(read(pieces), renderer, 32, "truncate"),
    ):
        with pytest.raises(TypeError, match="NoneType"):
            changed()
    assert len(list((tmp_path / "cache").iterdir())) == 1, "a run that failed left something behind"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"overlong": "drop", "max_dropped": 0.01}, r"\d+ of 500 rows would be dropped \(\d+ × too long.*max_dropped is 0.01"),
        ({"overlong": "truncate", "max_truncated": 0.05}, r"\d+ of 500 rows would be cut .*max_truncated is 0.05"),
        ({"min_supervised_tokens": 9, "max_dropped": 0.5}, r"fewer than 9 tokens to learn from"),
    ],
)  # fmt: skip
def test_thresholds_stop_the_run(renderer, section, message):
    with pytest.raises(UserError, match=message):
        tokenize(read(many(500), validation_size=0), renderer, 24, **section)


def test_a_leak_is_named_and_refused(tmp_path, renderer):
    test = many(40)
    leaked = [test[3], {"question": "what is 5 PLUS 5", "answer": "it is 10"}]
    write_jsonl(tmp_path / "train.jsonl", [*many(200)[100:], *leaked])
    write_jsonl(tmp_path / "test.jsonl", test)
    examples = read(str(tmp_path), validation_size=0)
    message = r"2 of 40 held-out rows .*\(1 word for word, 1 but for case and punctuation; train\.jsonl:101, train"
    with pytest.raises(UserError, match=message):
        tokenize(examples, renderer, None, max_leaked=0.01)
    ledger = tokenize(examples, renderer, None, max_leaked=0.1).ledger()
    assert ledger["held_out_duplicates"] == {"exact": 1, "normalized": 1}


def test_a_split_made_here_holds_no_row_twice(renderer):
    prepared = tokenize(read(many(50) * 2), renderer, None, max_leaked=0.0)
    reasons = prepared.ledger()["reasons"]
    assert reasons == {"the same as a row that was set aside": 10}
    held = {json.dumps(example.messages) for example in prepared.held_out}
    assert len(held) + prepared.ledger()["rows"]["kept"] / 2 <= 50


def test_the_ledger_adds_up(renderer):
    rows = [
        *many(97),
        {"question": "q", "answer": None},
        {"question": 3, "answer": "x"},
        {"question": "", "answer": "x"},
    ]
    prepared = tokenize(read(rows, validation_size=0, on_bad_row="drop"), renderer, 24)
    ledger = prepared.ledger()
    assert ledger["rows"]["kept"] + ledger["rows"]["dropped"] == 100
    assert sum(ledger["reasons"].values()) == ledger["rows"]["dropped"] == 3
    lengths = [len(row) for row in prepared.train["input_ids"]]
    assert ledger["tokens"]["total"] == sum(lengths)
    assert ledger["tokens"]["supervised"] == sum(label != -100 for row in prepared.train["labels"] for label in row)
    assert ledger["lengths"] == {
        "median": sorted(lengths)[len(lengths) // 2], "p95": sorted(lengths)[int(len(lengths) * 0.95)], "max": max(lengths)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("row", "loss_on"),
    [({"text": "once"}, "assistant"), ({"text": "once"}, "completion"), ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "completion")],
)  # fmt: skip
def test_a_flag_that_does_nothing_is_refused(row, loss_on):
    with pytest.raises(UserError, match=rf"data.loss_on: {loss_on} does nothing for data of the format"):
        read([row] * 3, loss_on=loss_on)
    assert set(SECTION) >= {"loss_on"}


def test_data_sets_are_mixed_by_weight(tmp_path, renderer):
    chats = [{"question": f"Chat {n}?", "answer": "yes"} for n in range(40)]
    sums = [{"source": f"Sum {n}", "target": "no"} for n in range(20)]
    names = [str(write_jsonl(tmp_path / "chats.jsonl", chats)), str(write_jsonl(tmp_path / "sums.jsonl", sums))]
    examples = read(names, weights=[0.5, 2], validation_size=0.1)
    assert (examples.format, examples.train_rows) == ("question_answer + source_target", 54)
    assert len(examples.validation) == 6
    prepared = tokenize(examples, renderer, None)
    texts = renderer.tokenizer.batch_decode(list(prepared.train["input_ids"]))
    assert [sum(word in text for text in texts) for word in ("Chat", "Sum")] == [18, 36]
    assert len({text for text in texts if "Chat" in text}) == 18
    told = prepared.ledger()["sources"]
    assert [(source["weight"], source["rows"]["kept"]) for source in told] == [(0.5, 36), (2, 18)]
    assert prepared.ledger()["rows"]["kept"] == 54
    again = tokenize(read(names, weights=[0.5, 2], validation_size=0.1), renderer, None)
    assert again.train.to_dict() == prepared.train.to_dict()
    assert [place for place, _ in examples.pick([39, 40])] == ["chats.jsonl:40", "sums.jsonl:1"]


@pytest.mark.parametrize("weights", [[1], [1, 0], [1, "2"], [1, 1, 1]])
def test_weights_fit_the_data_sets(tmp_path, weights):
    names = [str(write_jsonl(tmp_path / f"{name}.jsonl", many(4))) for name in ("a", "b")]
    with pytest.raises(UserError, match=r"data.weights: .* is not one number above 0 for each of the 2 data sets"):
        read(names, weights=weights)


def test_files_of_one_name_are_not_taken_for_each_other(tmp_path, renderer, monkeypatch):
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(preparation, "KEPT_IN_MEMORY", 0)
    names = []
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        rows = [{"question": f"{folder} {n}?", "answer": "yes"} for n in range(20)]
        names.append(str(write_jsonl(tmp_path / folder / "chats.jsonl", rows)))
    prepared = tokenize(read(names, validation_size=0), renderer, None)
    texts = renderer.tokenizer.batch_decode(list(prepared.train["input_ids"]))
    assert [sum(f"{folder} " in text for text in texts) for folder in ("one", "other")] == [20, 20]


def test_what_is_made_of_cached_rows_is_not_taken_for_them(pieces, tmp_path, renderer, monkeypatch):
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(preparation, "KEPT_IN_MEMORY", 0)
    first = tokenize(read(pieces), renderer, 32)
    rows = first.train.to_dict()
    # As packing does: `datasets` puts its own cache files beside those that it reads.
    first.train.map(lambda row: {"input_ids": row["input_ids"][:1]}, remove_columns=["labels"])
    assert len(list((tmp_path / "cache").glob("*/*.arrow"))) > 2
    assert tokenize(read(pieces), renderer, 32).train.to_dict() == rows
