"""Early stopping: what asks for it and what contradicts it, and that the weights that are saved are the best ones."""

import json
from functools import cache

import jsonschema
import pytest
import torch
from conftest import write_jsonl
from safetensors.torch import load_file

from hf_peft_recipes import UserError, get_recipe, trained
from hf_peft_recipes.embedded import DATA_DIR
from hf_peft_recipes.results import read_schema

PATIENCE = "evaluation.early_stopping_patience"
WEIGHTS = {"lora": "adapter_model.safetensors", "full": "model.safetensors"}
RATES = {"lora": 5e-3, "full": 5e-3}
EVERY = 3


def test_patience_keeps_the_best_checkpoint():
    training = get_recipe("lora", **{PATIENCE: 3}).show()["training"]
    assert training["load_best_model_at_end"]["value"] is True
    assert training["save_strategy"]["value"] == "best"
    assert "early_stopping_patience: not null" in training["load_best_model_at_end"]["origin"]
    assert get_recipe("lora").resolved.value("training.save_strategy") == "steps"
    assert get_recipe("lora").resolved.value("training.load_best_model_at_end") is None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({PATIENCE: 0}, "patience = 0 .*at least 1 evaluation"),
        ({PATIENCE: 2, "evaluation.early_stopping_threshold": -0.1}, "threshold = -0.1 .*0 or more"),
        ({PATIENCE: 2, "eval_strategy": "no"}, "eval_strategy = no .*use --eval_strategy steps"),
        ({PATIENCE: 2, "load_best_model_at_end": False}, "which training.load_best_model_at_end = false"),
        # Upstream takes every second evaluation, and goes back to a checkpoint that is not the best.
        ({PATIENCE: 2, "save_strategy": "steps", "save_steps": 0.4}, "save_steps = 0.4 .*use --save_strategy best"),
        ({PATIENCE: 2, "save_strategy": "epoch"}, "save_strategy = epoch .*use --save_strategy best"),
    ],
)
def test_what_contradicts_it_is_told_before_anything_is_loaded(settings, said):
    with pytest.raises(UserError, match=said) as caught:
        get_recipe("lora", **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings", [{"save_strategy": "steps", "save_steps": 0.2}, {"save_strategy": "epoch", "eval_strategy": "epoch"}]
)
def test_checkpoints_at_each_evaluation_do_as_well(settings):
    assert get_recipe("lora", **{PATIENCE: 2}, **settings).resolved.value("training.load_best_model_at_end")


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory):
    """Return a function from a method to the result of a run on 16 rows at a rate that is much too high."""
    folder = tmp_path_factory.mktemp("few")
    for split, number in (("train", 16), ("validation", 24)):
        lines = (DATA_DIR / f"{split}.jsonl").read_text("utf-8").splitlines()[:number]
        write_jsonl(folder / f"{split}.jsonl", [json.loads(line) for line in lines])

    @cache
    def train(method):
        recipe = get_recipe(
            method, dataset=str(folder), max_length=256, gradient_accumulation_steps=1, per_device_train_batch_size=1,
            max_steps=60, learning_rate=RATES[method], lr_scheduler_type="constant", eval_steps=EVERY, certify="off",
            **{PATIENCE: 1, "evaluation.task": "text"},
        )  # fmt: skip
        return recipe.train(folder / method, progress=False)

    return train


@pytest.mark.parametrize("method", WEIGHTS)
def test_what_is_saved_is_the_best_checkpoint(method, overfitted):
    result = overfitted(method)
    stopping, evaluated = result.record["stopping"], evaluations(result)
    assert stopping["stopped_early"]
    assert stopping["steps"] == max(evaluated) < stopping["planned_steps"] == 60
    assert stopping["best_step"] == min(evaluated, key=evaluated.get) == stopping["steps"] - EVERY
    assert stopping["best_value"] == evaluated[stopping["best_step"]]
    jsonschema.validate(result.record, read_schema())
    saved = load_file(result.folder / WEIGHTS[method])
    best = load_file(result.folder / f"checkpoint-{stopping['best_step']}" / WEIGHTS[method])
    assert saved.keys() == best.keys()
    assert all(torch.equal(saved[name], best[name]) for name in best)
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert result.record["proof"]["unproved"] == {}


def test_what_is_loaded_has_the_best_loss(overfitted):
    result = overfitted("lora")
    found = trained.evaluate(result.load(), result.record, with_base=False)["after"]["loss"]
    # Rows are packed while training runs and alone here; the means over them differ a little.
    stopping, evaluated = result.record["stopping"], evaluations(result)
    assert found == pytest.approx(stopping["best_value"], rel=0.05)
    assert abs(found - stopping["best_value"]) < abs(found - evaluated[stopping["steps"]]) / 3


def test_a_metric_that_evaluation_does_not_give(tmp_path, rows):
    recipe = get_recipe("lora", dataset=rows, max_steps=1, metric_for_best_model="los", load_best_model_at_end=True)
    with pytest.raises(UserError, match=r"evaluation gives no 'los'; did you mean 'loss'"):
        recipe.train(tmp_path / "out", progress=False)


def test_without_held_out_rows_there_is_no_best(tmp_path, rows):
    recipe = get_recipe("lora", dataset=rows, **{PATIENCE: 1, "data.validation_size": 0.0})
    with pytest.raises(UserError, match="known by held-out rows, and there are none"):
        recipe.train(tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def evaluations(result):
    """Return step to held-out loss."""
    return {point["step"]: point["eval_loss"] for point in result.record["loss_curve"] if "eval_loss" in point}
