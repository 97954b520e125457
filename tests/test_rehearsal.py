"""A rehearsal takes the rows that ask most, tells what they take, and refuses a run that does not fit."""

import subprocess
import sys

import pytest
from conftest import FAST, ROOT

from hf_peft_recipes import get_recipe
from hf_peft_recipes.data.longest import longest_rows
from hf_peft_recipes.device import named_device
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.rehearsal import is_due

pytestmark = pytest.mark.usefixtures("whole_libraries")


def token_rows(lengths, supervised=None):
    from datasets import Dataset

    supervised = supervised or lengths
    return Dataset.from_dict(
        {
            "input_ids": [[7] * length for length in lengths],
            "labels": [[-100] * (length - some) + [7] * some for length, some in zip(lengths, supervised, strict=True)],
        }
    )


def sizes(dataset):
    return [(len(row["input_ids"]), sum(label != -100 for label in row["labels"])) for row in dataset]


def test_the_longest_rows_come_first_and_of_those_the_ones_with_most_loss():
    dataset = token_rows([3, 9, 5, 9, 9], supervised=[3, 2, 5, 8, 4])
    assert sizes(longest_rows(dataset, 4)) == [(9, 8), (9, 4), (9, 2), (5, 5)]


def test_rows_that_were_selected_before_are_the_only_ones():
    dataset = token_rows([3, 9, 5, 8, 2]).select([4, 0, 2])
    assert sizes(longest_rows(dataset, 2)) == [(5, 5), (3, 3)]


def test_too_few_rows_are_taken_again():
    assert sizes(longest_rows(token_rows([2, 6]), 5)) == [(6, 6), (2, 2), (6, 6), (2, 2), (6, 6)]


def test_of_a_stream_the_first_rows_are_taken():
    assert sizes(longest_rows(token_rows([3, 9, 5]).to_iterable_dataset(), 2)) == [(3, 3), (9, 9)]


def test_a_rehearsal_is_due_on_a_gpu_that_gets_full():
    recipe = get_recipe("lora")
    plan = recipe.plan("H100")
    assert not is_due(plan)
    near = named_device(f"{plan.total_bytes / 2**30 / 0.9:.3f}GiB")
    assert is_due(recipe.plan(near))
    assert not is_due(recipe.plan(named_device("cpu")))


def test_objects_cannot_be_rehearsed():
    rows = [{"prompt": "a", "completion": "b"}]
    with pytest.raises(UserError, match="dataset is an object here"):
        get_recipe("lora", dataset=rows).rehearse()
    assert get_recipe("lora", dataset=rows).rehearse(None) is None


@pytest.mark.slow
def test_what_fits_is_measured_phase_by_phase():
    found = get_recipe("full", max_steps=50, **{**FAST, "eval_strategy": "steps"}).rehearse()
    assert found.fits
    assert found.error == ""
    assert set(found.measured) == {"load", "train", "evaluate", "save"}
    for phase, size in found.measured.items():
        assert size == pytest.approx(found.planned[phase], rel=0.15), phase
    assert found.tokens_per_second > 0


@pytest.mark.slow
def test_what_does_not_fit_is_refused_and_nothing_is_written(tmp_path):
    # A smaller machine: what a process may hold for itself is limited, by the system. Libraries and weights fit by
    # far, a step of so many rows does not.
    words = ["train", "lora", "--rehearse", "--output_dir", str(tmp_path / "out"), "--max_steps", "500"]
    words += ["--per_device_train_batch_size", "64"]
    finished = subprocess.run(
        ["prlimit", f"--data={1024 * 2**20}", sys.executable, "-m", "hf_peft_recipes", *words],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert finished.returncode == 2, finished.stderr
    last = finished.stderr.splitlines()[-1]
    assert last.startswith("error: lora does not fit: its rehearsal on the longest rows ran out of memory"), last
    assert "(in train: " in last
    assert "planned were" in last
    assert "Traceback" not in finished.stderr
    assert not (tmp_path / "out").exists()
