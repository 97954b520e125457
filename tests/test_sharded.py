"""Runs whose model is split over processes by accelerate's FSDP2, over gloo (see `fsdp_on_cpu`)."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

from hf_peft_recipes import get_recipe
from hf_peft_recipes.checkpoints.verdicts import verify
from hf_peft_recipes.launching import CONFIGS_FOLDER

SHORT = {
    "max_steps": 4, "evaluation.max_rows": 4, "data.validation_rows": 4, "eval_strategy": "no", "max_length": 128,
    "bf16": False, "dtype": "float32",
}  # fmt: skip


def split(recipe, folder, *words, config=CONFIGS_FOLDER / "fsdp2.yaml"):
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), "--dynamo_backend", "no",
        "--main_process_port", "0", str(ROOT / "tests" / "fsdp_on_cpu.py"), "train", recipe, "--output_dir", str(folder),
        "--use_cpu", "false", *(word for key, value in SHORT.items() for word in (f"--{key}", str(value).lower())), *words,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False)


def record(folder):
    return json.loads((folder / "result.json").read_text())


def losses(found):
    return [point["loss"] for point in found["loss_curve"] if "loss" in point]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A run that is split over two processes, with a checkpoint in the middle, and the same one in one process."""
    folder = tmp_path_factory.mktemp("sharded")
    finished = split("lora", folder / "split", "--save_steps", "2")
    assert finished.returncode == 0, finished.stderr
    # What is split takes no faster path.
    recipe = get_recipe("lora", gradient_accumulation_steps=4, save_strategy="no", certify="off", speed="off", **SHORT)
    recipe.train(folder / "whole", progress=False)
    return folder


def test_a_split_run_learns_what_a_whole_one_learns(pair):
    found, expected = record(pair / "split"), record(pair / "whole")
    assert found["hardware"]["processes"] == 2
    assert losses(found) == pytest.approx(losses(expected), rel=1e-4)
    for side in ("before", "after"):
        assert found["metrics"][side]["loss"] == pytest.approx(expected["metrics"][side]["loss"], rel=1e-4)
    assert found["proof"]["unproved"] == {} and found["proof"]["judged"]


def test_its_adapter_is_whole(pair):
    """Under accelerate#4206 all shards but the first process's were lost."""
    found, expected = (load_file(pair / side / "adapter_model.safetensors") for side in ("split", "whole"))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, atol=1e-4), name
    # What a fresh process said that loaded it with plain PEFT: every trained tensor is what it was, bit for bit.
    certificate = record(pair / "split")["certificate"]
    assert certificate["status"] == "passed"
    assert {"trained tensors", "logits"} <= {check["name"] for check in certificate["checks"]}


def test_its_checkpoints_hold_the_adapter_and_nothing_of_the_base(pair):
    checkpoint = verify(pair / "split" / "checkpoint-2")
    assert checkpoint.good, checkpoint.problems
    state = torch.load(checkpoint.path / "pytorch_model_fsdp.bin", weights_only=True)
    adapter = load_file(pair / "split" / "checkpoint-4" / "adapter_model.safetensors")
    assert len(state) == len(adapter)
    assert all("lora_" in name for name in state)
    last = torch.load(pair / "split" / "checkpoint-4" / "pytorch_model_fsdp.bin", weights_only=True)
    for name, tensor in adapter.items():
        assert torch.equal(last[name.replace(".weight", ".default.weight")], tensor), name


@pytest.mark.slow_sweep
def test_a_split_run_goes_on_where_it_was(pair, tmp_path):
    folder = tmp_path / "out"
    assert split("lora", folder, "--save_steps", "2").returncode == 0
    for path in (folder / "result.json", folder / "checkpoint-4" / "manifest.json"):
        path.unlink()
    finished = split("lora", folder, "--save_steps", "2", "--resume")
    assert finished.returncode == 0, finished.stderr
    found, expected = (load_file(side / "adapter_model.safetensors") for side in (folder, pair / "split"))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    # Before it learns anything a run that goes on is what it was at its start.
    assert record(folder)["metrics"]["before"] == record(pair / "split")["metrics"]["before"]


@pytest.mark.slow_sweep
@pytest.mark.parametrize(
    ("recipe", "words"),
    [("qlora", ["--bnb_4bit_quant_storage", "float32"]), ("full", []), ("dora", []), ("dpo", []), ("classify", [])],
)
def test_other_recipes_that_are_split(recipe, words, tmp_path):
    finished = split(recipe, tmp_path / "out", "--save_strategy", "no", *words)
    assert finished.returncode == 0, finished.stderr
    assert record(tmp_path / "out")["certificate"]["status"] == "passed"
