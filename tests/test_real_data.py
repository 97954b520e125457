"""A really pretrained model on public data, by every method: the README's example, shortened."""

import json

import pytest

from hf_peft_recipes import get_recipe

pytestmark = pytest.mark.real_data

SETS = {
    "rt-polarity": {"dataset": "data/rt-polarity"},
    "gsm8k": {"dataset": "data/gsm8k", "columns": {"prompt": "question", "completion": "answer"}},
}


# Each method and each data set, not each with each.
@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("lora", "rt-polarity"),
        ("full", "rt-polarity"),
        pytest.param("qlora", "gsm8k", marks=pytest.mark.slow_sweep),
    ],
)
def test_learns_and_reloads(method, name, public, tmp_path):
    data = {"dataset": str(public / SETS[name]["dataset"]), "columns": SETS[name].get("columns"), "validation_rows": 16}
    recipe = get_recipe(
        method, model=str(public / "models" / "stories260K"), data={k: v for k, v in data.items() if v is not None},
        max_steps=6, max_length=256, gradient_accumulation_steps=4, learning_rate=5e-3 if method != "full" else 1e-3,
        save_strategy="no", certify="auto" if name == "rt-polarity" else "off", **{"evaluation.max_rows": 16},
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
    # What was saved gives, in a fresh process, what the live model gave.
    assert name == "gsm8k" or result.record["certificate"]["status"] == "passed"


INSPECTED = {
    # data set: (flags, format, usable rows, least share of tokens with loss)
    "rt-polarity": ([], "text_label", 10662, 0.01),
    "gsm8k": ([], "question_answer", 7473, 0.4),
    "ner/wnut17.train.conll": ([], "tokens_tags", 3394, 0.05),
    "wiki-split/test.tsv": (["--columns.prompt", "1", "--columns.completion", "2"], "mapped", 5000, 0.4),
    "human-eval/HumanEval.jsonl.gz": (
        ["--columns.prompt", "prompt", "--columns.completion", "canonical_solution"], "mapped", 164, 0.1,
    ),
    "tinyshakespeare.txt": ([], "text", 32777, 1.0),
}  # fmt: skip


def columns_of(name):
    flags = INSPECTED[name][0]
    columns = {flag.removeprefix("--columns."): column for flag, column in zip(flags[::2], flags[1::2], strict=True)}
    return {"columns": columns} if columns else {}


@pytest.mark.parametrize("name", INSPECTED)
def test_public_data_are_inspected(name, public):
    _, rows_format, usable, share = INSPECTED[name]
    model, dataset = str(public / "models" / "stories260K"), str(public / "data" / name)
    found = get_recipe("lora", model=model, dataset=dataset, **columns_of(name)).inspect(2)
    assert found["format"] == rows_format
    assert all(check["ok"] for check in found["checks"])
    rows, tokens = found["ledger"]["rows"], found["ledger"]["tokens"]
    assert rows["kept"] + rows["dropped"] + found["splits"]["validation"] == usable
    assert set(found["ledger"]["reasons"]) <= {"the same as a row that was set aside"}
    assert tokens["supervised"] >= share * tokens["total"]
    assert len(found["rows"]) == 2
    for row in found["rows"]:
        assert sum(token["supervised"] for token in row["tokens"]) == row["supervised"] > 0


@pytest.mark.parametrize("name", [name for name in INSPECTED if name not in SETS])
def test_public_data_are_trained_on(name, public, tmp_path):
    recipe = get_recipe(
        "lora", model=str(public / "models" / "stories260K"), dataset=str(public / "data" / name), learning_rate=5e-3,
        max_steps=6, max_length=256, gradient_accumulation_steps=2, save_strategy="no", certify="off",
        **{"evaluation.max_rows": 16, "evaluation.task": "text"}, **columns_of(name),
    )  # fmt: skip
    metrics = recipe.train(tmp_path / "out", progress=False).metrics
    assert metrics["after"]["loss"] < metrics["before"]["loss"]


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
