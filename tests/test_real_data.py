"""A really pretrained model on public data, by every method: the README's example, shortened."""

import json
import subprocess
import sys

import pytest
import torch
from test_training import RELOAD

from hf_peft_recipes import get_recipe

pytestmark = pytest.mark.real_data

SETS = {
    "rt-polarity": {"dataset": "data/rt-polarity"},
    "gsm8k": {"dataset": "data/gsm8k", "columns": {"prompt": "question", "completion": "answer"}},
}


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
@pytest.mark.parametrize("name", SETS)
def test_learns_and_reloads(method, name, public, tmp_path):
    data = {"dataset": str(public / SETS[name]["dataset"]), "columns": SETS[name].get("columns"), "validation_rows": 16}
    recipe = get_recipe(
        method, model=str(public / "models" / "stories260K"), data={k: v for k, v in data.items() if v is not None},
        max_steps=6, max_length=256, gradient_accumulation_steps=4, learning_rate=5e-3 if method != "full" else 1e-3,
        save_strategy="no", **{"evaluation.max_rows": 16},
    )  # fmt: skip
    result = recipe.train(tmp_path / "out", progress=False)
    metrics = result.metrics
    assert metrics["after"]["loss"] < metrics["before"]["loss"]
    evaluated = [point["eval_loss"] for point in result.record["loss_curve"] if "eval_loss" in point]
    assert evaluated[-1] < evaluated[0]
    rows = result.record["data"]["ledger"]["rows"]
    counted = {"rt-polarity": 10662 - 16, "gsm8k": 7473 - 16}[name]
    assert rows["kept"] + rows["dropped"] == counted
    assert rows["dropped"] == 0
    if name == "gsm8k":
        return
    # What was saved gives, in a fresh process, what the run's own loader gives here.
    loaded = result.load().model
    ids = result.load().renderer.tokenizer("Review: The soup was cold.", return_tensors="pt").input_ids
    with torch.no_grad():
        here = loaded(input_ids=ids, use_cache=False).logits.float()
    script = RELOAD.replace("assert tokenizer.chat_template\n", "")
    command = [sys.executable, "-c", script, str(tmp_path / "out"), method, str(tmp_path / "logits.pt")]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert torch.equal(torch.load(tmp_path / "logits.pt"), here)


def test_columns_on_the_command_line(public, command, tmp_path):
    finished = command(
        "train", "lora", "--model", public / "models" / "stories260K", "--dataset", public / "data" / "gsm8k",
        "--data.columns.prompt", "question", "--data.columns.completion", "answer", "--dry_run", "--json",
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    ledger = json.loads(finished.stdout)["data"]["ledger"]
    assert ledger["rows"]["dropped"] == 0
    # The model was made for 512 tokens; longer rows go on in the next one.
    assert ledger["max_length"] == 512
    assert ledger["rows"]["split"] > 0
