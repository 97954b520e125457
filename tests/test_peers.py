"""The benchmark against other ways: the same work on both sides, or nothing is timed; a file that is gone on with."""

import dataclasses
import json
import subprocess
import sys

import pytest
from conftest import ROOT

from benchmarks.peers import ceiling, process
from benchmarks.peers.__main__ import main
from benchmarks.peers.contenders import CONTENDERS
from benchmarks.peers.job import LORA, Job
from benchmarks.peers.matching import compare, table
from benchmarks.peers.ratios import ratios
from benchmarks.peers.record import Record
from benchmarks.peers.work import ADAPTER, MODEL, ROWS, Shape
from hf_peft_recipes.errors import UserError

TINY = Shape(hidden=64, layers=2, vocabulary=1280, rows=80)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """The tiny model, its rows and its adapter."""
    folder = tmp_path_factory.mktemp("work")
    process.run_module("work", str(folder), json.dumps(dataclasses.asdict(TINY)))
    return folder


@pytest.fixture(scope="module")
def run(work):
    """A function that runs a contender's check on the tiny work in a fresh process, and returns its record."""

    def run(name, **changes):
        contender = dataclasses.replace(CONTENDERS[name], **changes)
        job = Job(
            contender.recipe, str(work / MODEL), str(work / ROWS), steps=3, warmup=1, matched=True,
            settings=contender.settings, adapter=str(work / ADAPTER), accumulation=2,
        )  # fmt: skip
        record = process.run(contender, job)
        assert record["status"] == "done", record
        return record

    return run


@pytest.fixture(scope="module")
def ours(run):
    return run("ours")


@pytest.mark.slow
def test_ours_and_plain_trl_do_the_same_work_step_by_step(run, ours):
    theirs = run("trl_best")
    verdict = compare(ours, theirs)
    assert verdict["mismatches"] == [], table({"ours": ours, "trl_best": theirs}, {"trl_best": verdict})
    assert verdict["not_told"] == []
    assert len(ours["step_seconds"]) == 3 and all(1600 < tokens <= 2048 for tokens in ours["tokens"])
    assert all(
        0 < supervised < tokens for supervised, tokens in zip(ours["supervised_tokens"], ours["tokens"], strict=True)
    )
    # The adapter that both start from is not the one that PEFT draws, whose B is zero: all of it has a gradient.
    assert ours["gradient_norms"][0] > 0.1


@pytest.mark.slow
def test_other_labels_on_one_side_are_no_match(run, ours):
    training = {**CONTENDERS["trl_best"].settings["training"], "assistant_only_loss": False}
    told = compare(ours, run("trl_best", settings={"training": training}))["mismatches"]
    assert [one.partition(":")[0] for one in told][:2] == ["digests", "supervised_tokens"], told


@pytest.mark.slow
def test_the_ceiling_counts_what_the_work_needs(work, ours):
    flops = ceiling.token_flops(work / MODEL, "lora", ours)
    config = TINY.config()
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    # Two of four heads hold keys and values.
    sizes = [(hidden, hidden)] * 2 + [(hidden // 2, hidden)] * 2 + [(hidden, inner)] * 3
    layers = TINY.layers * sum(rows * columns for rows, columns in sizes)
    adapters = TINY.layers * sum(LORA["r"] * (rows + columns) for rows, columns in sizes)
    head = hidden * TINY.vocabulary * sum(ours["supervised_tokens"]) / sum(ours["tokens"])
    attended = round(sum(ours["squared_lengths"]) / sum(ours["tokens"]))
    assert 1 < attended < 1024
    assert flops == pytest.approx(4 * (layers + head) + 6 * adapters + 3.5 * 2 * attended * hidden * TINY.layers)


def _like(record, **changes):
    return {**record, **changes}


STEPS = {
    "digests": ["a", "b"], "tokens": [10, 12], "supervised_tokens": [5, 6], "losses": [2.0, 1.5], "gradient_norms": [1.0, 0.8],
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, ""),
        ({"losses": [2.019, 1.5], "gradient_norms": [1.0, 0.815]}, ""),
        ({"losses": [2.0, 1.52]}, "losses: [2, 1.5] and [2, 1.52], allowed are 1%"),
        ({"losses": [2.0, float("nan")]}, "losses: [2, 1.5] and [2, nan], allowed are 1%"),
        ({"gradient_norms": [0.97, 0.8]}, "gradient_norms: [1, 0.8] and [0.97, 0.8], allowed are 2%"),
        ({"tokens": [10, 11]}, "tokens: [10, 12] and [10, 11] at step 2"),
        ({"digests": ["a", "c"]}, "digests: of another content at step 2"),
        ({"losses": [2.0]}, "losses: 2 steps and 1"),
    ],
)
def test_each_difference_is_told(changes, told):
    assert "; ".join(compare(STEPS, _like(STEPS, **changes))["mismatches"]) == told


def test_a_figure_that_is_not_told_is_named_and_no_mismatch():
    verdict = compare(STEPS, {key: value for key, value in STEPS.items() if key != "gradient_norms"})
    assert (verdict["mismatches"], verdict["not_told"]) == ([], ["gradient_norms"])


def test_ratios_are_taken_within_a_turn():
    turns = [
        {"ours": _figures(300, 2), "peer": _figures(100, 1), "late": _figures(150, 1)},
        {"ours": _figures(200, 2), "peer": _figures(100, 4)},
        {"ours": _figures(100, 2), "peer": _figures(100, 2)},
    ]
    table = ratios(turns)
    assert table["peer"]["tokens_per_second"] == {"median": 2.0, "low": 1.0, "high": 3.0}
    assert table["peer"]["peak_memory_bytes"] == {"median": 1.0, "low": 0.5, "high": 2.0}
    assert table["late"]["tokens_per_second"] == {"median": 2.0, "low": 2.0, "high": 2.0}
    # What a contender does not tell has no ratio.
    assert "supervised_tokens_per_second" not in table["peer"]


def _figures(rate, memory):
    return {
        "tokens_per_second": rate, "supervised_tokens_per_second": None, "peak_memory_bytes": memory,
        "first_step_seconds": 1.0,
    }  # fmt: skip


def test_a_finished_cell_stays_and_an_unfinished_one_is_run_again(tmp_path):
    path = tmp_path / "r.json"
    record = Record(path, {"layers": 2, "lora": LORA})
    record.keep("turn 1/ours", {"status": "done", "tokens_per_second": 5.0})
    record.keep("turn 1/peer", {"status": "failed", "reason": "killed"})
    again = Record(path, {"layers": 2, "lora": LORA})
    assert again.cell("turn 1/ours") == {"status": "done", "tokens_per_second": 5.0}
    assert again.cell("turn 1/peer") is None and again.cell("turn 2/ours") is None
    assert list(tmp_path.iterdir()) == [path]


def test_cells_of_other_settings_or_another_commit_are_not_mixed(tmp_path):
    path = tmp_path / "r.json"
    Record(path, {"layers": 2}).write()
    with pytest.raises(UserError, match=r"holds runs of other layers \(--out"):
        Record(path, {"layers": 3})
    content = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**content, "commit": "0123456789abcdef"}), "utf-8")
    with pytest.raises(UserError, match="holds runs of commit 0123456789ab"):
        Record(path, {"layers": 2})
    assert Record(path, {"layers": 2}, overwrite=True).content["cells"] == {}


@pytest.mark.parametrize("content", ['{"what": "ratios", "turns": []}', '{"schema_version": 1}', "[1]", "{"])
def test_a_file_of_another_schema_is_refused_in_one_line(tmp_path, content, capsys):
    path = tmp_path / "old.json"
    path.write_text(content, "utf-8")
    assert main(["--out", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {path}: ") and printed.err.count("\n") == 1 and printed.out == ""
    assert path.read_text("utf-8") == content


def test_an_unknown_contender_is_refused_with_the_nearest(capsys):
    assert main(["--contenders", "trl_bst"]) == 2
    assert "did you mean 'trl_best'" in capsys.readouterr().err


def test_an_environment_without_requirements_is_refused():
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers.environments", "axolotol"], cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert finished.returncode == 2
    assert finished.stderr.strip().endswith(
        "did you mean 'axolotl'? (known: axolotl, llamafactory, torchtune, unsloth)"
    )


def test_a_framework_that_is_not_installed_is_told_as_such(monkeypatch, tmp_path):
    monkeypatch.setenv("PEERS_ENVIRONMENTS", str(tmp_path))
    job = Job("lora", "model", "rows", steps=1, warmup=0, matched=True)
    cell = process.run(CONTENDERS["axolotl"], job)
    assert cell["status"] == "unavailable" and cell["reason"].endswith("benchmarks.peers.environments axolotl")
