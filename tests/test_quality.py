"""The comparison of methods: what it runs, what it takes from a run, and what it does not run again."""

import json

import pytest

from benchmarks.quality import benchmark, find_methods, main, write_pretraining_text
from hf_peft_recipes.data.sources import read_data
from hf_peft_recipes.embedded import DATA_DIR
from hf_peft_recipes.errors import UserError


def test_every_method_that_ships_is_one():
    assert {"lora", "qlora", "full"} <= set(find_methods())
    assert "sft" not in find_methods()


def test_the_text_that_may_be_forgotten_is_no_text_of_the_task(tmp_path):
    write_pretraining_text(tmp_path, rows=30)
    texts = [record.row["text"] for record in read_data(str(tmp_path)).splits["test"].records()]
    assert len(set(texts)) == len(texts) == 30
    task = "".join(path.read_text("utf-8") for path in DATA_DIR.glob("*.jsonl"))
    assert not [text for text in texts if text in task]


@pytest.mark.slow
def test_a_run_is_measured_once_and_its_forgetting_beside_it(tmp_path, capsys):
    words = ["--methods", "lora", "--seeds", "1", "--steps", "2", "--out", str(tmp_path / "quality.jsonl")]
    flags = ["--evaluation.max_rows", "8"]
    (line,) = benchmark([*words, *flags])
    assert line["status"] == "done", line
    assert line["cell"]["flags"] == flags and line["cell"]["steps"] == 2
    low, high = line["metrics"]["intervals"]["after"]["loss"]
    assert low < line["metrics"]["after"]["loss"] < high
    # Float32 weights and a head of names.
    assert 1 < line["trained_bytes"] / (4 * line["parameters"]["trainable"]) < 1.1 and not line["quantized"]
    lost = line["forgetting"]
    assert lost["rows"] == 8 and 0 < lost["before"] != lost["after"]
    assert {"hardware", "versions", "date", "commit", "code"} <= set(line)
    assert benchmark([*words, *flags]) == [json.loads((tmp_path / "quality.jsonl").read_text("utf-8"))] == [line]
    assert "measured before, at" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "sft"], "no method that ships"),
        (["--seeds", "0"], "at least 1"),
        (["--model", "somewhere"], "needs --dataset"),
        (["stray"], "stray"),
    ],
)
def test_a_mistake_is_told_before_anything_runs(words, message):
    with pytest.raises(UserError, match=message):
        benchmark(words)


def test_a_file_of_another_schema_is_refused(tmp_path, monkeypatch, capsys):
    path = tmp_path / "old.jsonl"
    path.write_text('{"schema_version": 0, "name": "x"}\n', "utf-8")
    monkeypatch.setattr("sys.argv", ["quality", "--seeds", "1", "--out", str(path)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2 and "schema version 0" in capsys.readouterr().err
