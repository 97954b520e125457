"""Benchmarks: models and rows are what they are said to be, a killed benchmark loses no cell, want of memory is a result."""

import json
import os
import signal
import subprocess
import sys
import time
from typing import get_type_hints

import pytest
import torch
from conftest import ROOT

from hf_peft_recipes.bench.cell import Cell, run_cell
from hf_peft_recipes.bench.rows import LENGTHS, write_rows
from hf_peft_recipes.bench.shapes import EMBEDDED, SHAPES, find_shape, make_model
from hf_peft_recipes.bench.suite import read_lines, write_lines
from hf_peft_recipes.embedded import MODEL_DIR
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.measure.clock import Step, count_batch, rates
from hf_peft_recipes.measure.phases import Phases
from hf_peft_recipes.plan.shapes import read_shape

pytestmark = pytest.mark.usefixtures("whole_libraries")

PARAMETERS = {
    "135m": 134.5e6, "0.5b": 494.0e6, "1b": 1.236e9, "3b": 3.213e9, "8b": 8.030e9, "32b": 32.76e9, "70b": 70.55e9,
}  # fmt: skip
"""As the models' cards on the Hub have them."""


@pytest.mark.parametrize("name", PARAMETERS)
def test_shapes_have_the_parameters_of_the_models_they_stand_for(name):
    # Qwen2 has biases, which the cards count too.
    assert read_shape(SHAPES[name], name).parameters() == pytest.approx(PARAMETERS[name], rel=2e-3)


def test_an_unknown_shape_is_told_with_the_nearest_one():
    with pytest.raises(UserError, match=r"unknown shape '13m'; did you mean '135m'"):
        find_shape("13m")


def test_the_command_names_the_shapes():
    from hf_peft_recipes.cli.benching import bench_command

    (option,) = get_type_hints(bench_command, include_extras=True)["shapes"].__metadata__
    assert option.help == f"{', '.join([EMBEDDED, *SHAPES])}."


def test_a_model_is_made_once_and_loads(tmp_path):
    from transformers import AutoModelForCausalLM

    folder = make_model(tmp_path, "tiny")
    written = (folder / "model-00001.safetensors").stat().st_mtime_ns
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert torch.equal(model.model.norm.weight, torch.ones_like(model.model.norm.weight))
    assert model.model.layers[1].mlp.up_proj.weight.float().std().item() == pytest.approx(0.02, rel=0.05)
    assert make_model(tmp_path, "tiny") == folder
    assert (folder / "model-00001.safetensors").stat().st_mtime_ns == written


def test_a_model_written_in_four_bits_is_the_one_that_is_quantised_when_loaded(tmp_path):
    from transformers import AutoModelForCausalLM

    from hf_peft_recipes import get_recipe
    from hf_peft_recipes.models import load_base

    quantization = get_recipe("qlora", device="H100").resolved.section("quantization")
    whole, packed = make_model(tmp_path, "tiny"), make_model(tmp_path, "tiny", quantized=True)
    assert sum(file.stat().st_size for file in packed.glob("*.safetensors")) < 0.8 * sum(
        file.stat().st_size for file in whole.glob("*.safetensors")
    )
    ours = load_base(AutoModelForCausalLM, {"name_or_path": str(packed), "dtype": "bfloat16"}, None)
    theirs = load_base(AutoModelForCausalLM, {"name_or_path": str(whole), "dtype": "bfloat16"}, quantization)
    ids = torch.arange(24)[None]
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, theirs(ids).logits)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_rows_are_as_long_as_they_are_said_to_be(tmp_path, lengths):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    write_rows(tmp_path / "rows.jsonl", 40, 300, lengths)
    texts = [json.loads(line)["text"] for line in (tmp_path / "rows.jsonl").read_text("utf-8").splitlines()]
    found = [len(tokenizer(text).input_ids) + 1 for text in texts]
    assert len(found) == 40
    assert max(found) <= 300
    assert len(set(found)) == 1 if lengths == "full" else len(set(found)) > 10
    assert set(found) == {300} or lengths != "full"


def test_counts_of_a_packed_batch():
    batch = {
        "input_ids": torch.arange(10)[None],
        "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 1, 2]]),
        "labels": torch.tensor([[-100, 1, 2, 3, -100, -100, 6, -100, 8, 9]]),
    }
    assert count_batch(batch).tolist() == [10, 6, 3, 4**2 + 3**2 + 3**2]


def test_counts_of_a_padded_batch():
    batch = {
        "input_ids": torch.zeros(2, 5, dtype=torch.long),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]),
        "labels": torch.tensor([[0, 1, 2, 3, 4], [0, 1, -100, -100, -100]]),
    }
    # The first token of a row has nothing before it that could predict it.
    assert count_batch(batch).tolist() == [7, 5, 2, 5**2 + 2**2]


def test_rates_are_of_all_steps_together():
    steps = [Step(1.0, 100, 10, 4, 0), Step(3.0, 100, 30, 4, 0), Step(2.0, 200, 20, 4, 0)]
    found = rates(steps)
    assert found["tokens_per_second"] == pytest.approx(400 / 6)
    assert found["supervised_tokens_per_second"] == pytest.approx(10)
    assert found["step_seconds"] == 2.0
    assert found["step_seconds_percentiles"] == {"10": 1.0, "50": 2.0, "90": 3.0, "99": 3.0}
    assert rates([])["tokens_per_second"] is None


def test_the_peak_of_a_phase_is_its_own():
    phases = Phases()
    phases.lap("load")
    # What earlier tests have left in the heap is none of this one's.
    phases.settle()
    block = torch.ones(64 * 2**20, dtype=torch.uint8)
    phases.lap("train")
    del block
    phases.settle()
    phases.lap("save")
    grown = phases.costs["train"].host_bytes - phases.costs["save"].host_bytes
    assert grown == pytest.approx(64 * 2**20, rel=0.2)
    with pytest.raises(ValueError, match="no phase"):
        phases.lap("trian")


def test_results_of_another_schema_are_refused(tmp_path):
    write_lines(tmp_path / "old.jsonl", [{"schema_version": 99, "name": "x"}])
    with pytest.raises(UserError, match=r"old.jsonl, line 1: schema version 99; this software reads 1"):
        read_lines(tmp_path / "old.jsonl")
    (tmp_path / "torn.jsonl").write_text('{"schema_version": 1, "na', encoding="utf-8")
    with pytest.raises(UserError, match=r"torn.jsonl, line 1: no result"):
        read_lines(tmp_path / "torn.jsonl")


@pytest.mark.slow
def test_want_of_memory_is_a_result(tmp_path):
    # Enough to come up with, too little to train.
    out, limit = tmp_path / "bench.jsonl", ["prlimit", f"--data={2**30}"]
    words = [
        "bench", "--recipes", "lora", "--shapes", "s", "--lengths", "8192", "--steps", "1", "--warmup", "0",
        "--out", str(out), "--scratch", str(tmp_path),
    ]  # fmt: skip
    finished = subprocess.run(
        [*limit, sys.executable, "-m", "hf_peft_recipes", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    (line,) = read_lines(out)
    assert line["status"] == "oom", line
    assert "memory" in line["error"].lower()
    assert "measured" not in line


@pytest.mark.slow
def test_a_benchmark_that_is_killed_goes_on_where_it_was(tmp_path, command):
    out = tmp_path / "results" / "bench.jsonl"
    words = [
        "bench", "--recipes", "lora,full", "--shapes", "tiny", "--lengths", "64", "--steps", "1", "--warmup", "1",
        "--keep", "--out", str(out), "--scratch", str(tmp_path),
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "hf_peft_recipes", *words], cwd=ROOT, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while process.poll() is None and not out.is_file():
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert [line["name"] for line in read_lines(out)] == ["lora-tiny-64-off"]
    finished = command(*words, "--json")
    assert finished.returncode == 0, finished.stderr
    assert "lora-tiny-64-off: done" in finished.stderr
    assert "measured before" in finished.stderr.splitlines()[0]
    lora, full = json.loads(finished.stdout)
    assert (lora["status"], full["status"]) == ("done", "done")
    assert read_lines(out) == [lora, full]
    for line in (lora, full):
        assert line["commit"]
        assert {"torch", "transformers"} <= line["versions"].keys()
        assert line["hardware"]["device"]["kind"] == "cpu"
        assert line["figures"]["steps"] == 1
        assert line["measured"]["series"]["tokens"] == [8 * 64] * 2
        assert {"start", "data", "load", "train", "evaluate", "save"} <= line["measured"]["phases"].keys()
        assert 0 < line["figures"]["mfu"] <= line["figures"]["hfu"] < 1
        assert line["planned"]["phases"]["train"] == pytest.approx(line["measured"]["peak_memory_bytes"], rel=0.1)


def test_bad_flags_are_one_line(command):
    for words, said in {
        ("--lengths", "none"): "--lengths none: whole numbers",
        ("--checkpointing", "maybe"): "--checkpointing maybe: off and on",
        ("--recipes", "lorra"): "unknown recipe 'lorra'; did you mean 'lora'",
        ("--documents", "long"): "unknown lengths 'long'",
    }.items():
        finished = command("bench", *words)
        assert finished.returncode == 2
        assert said in finished.stderr.splitlines()[-1]
        assert "Traceback" not in finished.stderr


def test_a_cell_is_planned_with_a_timed_step_where_that_is_asked_for(tmp_path):
    ended = subprocess.CompletedProcess("train", 2, "", "error: not run\n")
    cell = Cell("lora", "tiny", 64, lengths="skewed", steps=1, warmup=0, timed_plan=True)
    line = run_cell(cell, tmp_path, lambda *_: (ended, None))
    assert (line["status"], line["error"]) == ("failed", "not run")
    assert line["planned"]["timed_tokens_per_second"] > 0
