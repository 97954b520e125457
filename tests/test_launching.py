"""Several processes, really started: by us, by accelerate, and wrongly."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from hf_peft_recipes.errors import LaunchError
from hf_peft_recipes.launching import World, check_environment, check_world

SHORT = (
    "--max_steps",
    "2",
    "--evaluation.max_rows",
    "4",
    "--data.validation_rows",
    "4",
    "--save_strategy",
    "no",
    "--certify",
    "off",
)


def accelerate(options, output_dir, *words):
    # Given in full, or accelerate says at length which defaults it takes.
    usual = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        *options,
        *usual,
        "-m",
        "hf_peft_recipes",
        "train",
        "lora",
    ]
    return subprocess.run(
        [*command, "--output_dir", str(output_dir), *SHORT, *words],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def record(folder):
    return json.loads((folder / "result.json").read_text())


def test_accelerate_with_one_process(tmp_path):
    finished = accelerate(
        ["--num_processes", "1"],
        tmp_path / "out",
    )
    assert finished.returncode == 0, finished.stderr
    assert record(tmp_path / "out")["hardware"]["processes"] == 1


@pytest.mark.usefixtures("real_processes")
def test_accelerate_with_two_processes_is_one_run(tmp_path):
    finished = accelerate(
        [
            "--multi_gpu",
            "--num_processes",
            "2",
        ],
        tmp_path / "out",
    )
    assert finished.returncode == 0, finished.stderr
    written = record(tmp_path / "out")
    assert written["hardware"]["processes"] == 2
    assert written["status"] == "done"
    # Only rank 0 prints.
    assert finished.stdout.count("trainable parameters") == 1
    assert (
        len([line for line in finished.stderr.splitlines() if line.startswith("step 1/2") and "validation" not in line])
        == 1
    )
    assert "Warning" not in finished.stderr


def test_our_own_launcher(command, tmp_path):
    finished = command("train", "lora", "--num_processes", "2", "--output_dir", tmp_path / "out", *SHORT)
    assert finished.returncode == 0, finished.stderr
    assert record(tmp_path / "out")["hardware"]["processes"] == 2


def test_a_launcher_that_starts_one_of_two_is_found_out(tmp_path):
    finished = accelerate(
        ["--cpu", "--num_processes", "2"],
        tmp_path / "out",
    )
    assert finished.returncode != 0
    assert "asked for several processes and started one" in finished.stderr
    assert "Traceback" not in finished.stderr.split("error: ")[0]
    assert not (tmp_path / "out").exists()


def test_processes_that_would_train_apart_are_found_out(tmp_path):
    finished = accelerate(
        ["--multi_gpu", "--num_processes", "2"], tmp_path / "out", "--use_cpu", "false"
    )  # fmt: skip
    assert finished.returncode != 0
    assert "error: " in finished.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("environment", "fits"),
    [
        ({}, True),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}, True),
        ({"MASTER_ADDR": "127.0.0.1"}, False),
        ({"HF_PEFT_RECIPES_NUM_PROCESSES": "2"}, False),
        ({"HF_PEFT_RECIPES_NUM_PROCESSES": "1"}, True),
    ],
)
def test_the_launchers_variables(environment, fits):
    if fits:
        check_environment(environment)
    else:
        with pytest.raises(LaunchError):
            check_environment(environment)


@pytest.mark.parametrize(
    ("world", "environment", "message"),
    [
        (World(0, 1, "NO"), {"WORLD_SIZE": "2"}, "2 processes were asked for, but this one trains in a world of 1"),
        (
            World(0, 2, "MULTI_CPU"),
            {"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"},
            "FSDP was asked for and MULTI_CPU came up",
        ),
        (World(0, 1, "NO"), {"ACCELERATE_USE_DEEPSPEED": "true"}, "DEEPSPEED was asked for"),
    ],
)
def test_worlds_that_are_not_what_was_asked(world, environment, message):
    with pytest.raises(LaunchError, match=message):
        check_world(world, environment)
    check_world(World(0, 1, "NO"), {})
