"""Numbers that are none: what stops a run, what it says of where they came from, and losses that leap."""

import json
from types import SimpleNamespace

import jsonschema
import pytest
import torch
from datasets import Dataset
from faulty_steps import BrokenGradient, BrokenWeight, PoisonedRow

from hf_peft_recipes import get_recipe
from hf_peft_recipes.checkpoints import newest_good
from hf_peft_recipes.errors import NonFiniteError
from hf_peft_recipes.finite import FiniteGuard, LossSpikes
from hf_peft_recipes.finite.batch import documents, find_rows
from hf_peft_recipes.finite.guard import KEPT_IN_CHECKPOINTS
from hf_peft_recipes.finite.spikes import KEPT, spiked
from hf_peft_recipes.results import read_schema

SHORT = {
    "evaluation.max_rows": 0, "data.validation_size": 0.0, "eval_strategy": "no", "save_steps": 1, "certify": "off",
    "packing": False, "max_length": 64, "max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-3,
    "warmup_steps": 0,
    # Where the processor has bfloat16, losses are equal to three digits alone, and 1e6 is no rate that breaks all.
    "bf16": False, "dtype": "float32",
}  # fmt: skip
LAYER = "base_model.model.model.layers.1.mlp"


def stopped(folder, rows, callback=None, **overrides):
    """Return the error of a run that stops itself, and the record that it leaves."""
    recipe = get_recipe("lora", dataset=rows, callbacks=[callback] if callback else [], **{**SHORT, **overrides})
    with pytest.raises(NonFiniteError) as caught:
        recipe.train(folder, progress=False)
    record = json.loads((folder / "result.json").read_text())
    jsonschema.validate(record, read_schema())
    assert (record["status"], record["exit_code"], record["nonfinite"]) == ("failed", 3, caught.value.facts)
    assert "\n" not in str(caught.value)
    # Nothing that looks like a run's outcome.
    assert not [path.name for path in folder.iterdir() if path.name.startswith(("adapter_", "certificate"))]
    return str(caught.value), record


def test_a_base_that_is_not_finite_stops_the_first_step(tmp_path, rows):
    said, record = stopped(tmp_path / "out", rows, BrokenWeight(f"{LAYER}.up_proj.base_layer.weight"))
    assert said == f"step 1: the loss is not finite; the first to go was the weight {LAYER}.up_proj.base_layer.weight"
    assert record["nonfinite"]["rows"] is None
    assert newest_good(tmp_path / "out")[0] is None


def test_a_rate_that_is_much_too_high_leaves_the_last_good_checkpoint(tmp_path):
    # Where all rows are short, the model comes to give out the same whatever it reads, and the proof says so.
    said, record = stopped(tmp_path / "out", None, learning_rate=1e6, packing=True, max_length=128)
    assert record["nonfinite"]["step"] == 2 and said.startswith("step 2: the ")
    good, skipped = newest_good(tmp_path / "out")
    assert (good.step, skipped) == (1, [])
    assert [point["step"] for point in record["loss_curve"]] == [1]


AGAIN = pytest.mark.parametrize("recompute", ["off", "1 block + 1 feed-forward", "2 blocks"])


@AGAIN
def test_a_poisoned_row_is_named_with_the_layer_in_which_it_shows(tmp_path, rows, recompute):
    poison = PoisonedRow(7)
    said, record = stopped(
        tmp_path / "out", rows, poison, max_steps=20, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        recompute=recompute,
    )  # fmt: skip
    found = record["nonfinite"]
    # Before the optimizer's step: what is the newest is clean, and holds the steps before.
    assert newest_good(tmp_path / "out")[0].step == found["step"] - 1
    assert found["tensor"] == f"the output of {LAYER}.act_fn"
    assert 7 in found["rows"] and len(found["rows"]) == 2
    assert f"in micro-batch {found['micro_batch'] + 1} of 2; training rows " in said
    # Once in training; the step was gone through again without a gradient.
    assert poison.met == [found["step"]]


@AGAIN
def test_a_gradient_alone_is_found_on_the_way_back(tmp_path, rows, recompute):
    said, record = stopped(tmp_path / "out", rows, BrokenGradient(2), recompute=recompute)
    assert said.startswith("step 2: the gradient is not finite; the first to go was the gradient of ")
    # The layer's own last matrix: what comes after it in the backward pass got the same.
    assert record["nonfinite"]["tensor"] == f"the gradient of {LAYER}.down_proj.lora_B.default.weight"


def test_weights_that_an_update_breaks_are_never_saved(tmp_path, rows):
    broken = f"{LAYER}.up_proj.lora_B.default.weight"
    said, _ = stopped(tmp_path / "out", rows, BrokenWeight(broken, step=2), save_steps=2)
    assert said == f"step 2: the weight {broken} is not finite after it"
    assert not list((tmp_path / "out").glob("*checkpoint-*"))
    # Nor where no checkpoint is due, and training is over before the next step.
    said, _ = stopped(tmp_path / "end", rows, BrokenWeight(broken, step=2), max_steps=2, save_strategy="no")
    assert said == f"step 2: the weight {broken} is not finite after it"


# The guard by itself, in a loop of our own that calls it as transformers' Trainer does.


def take(guard, model, loss, step=0):
    state = SimpleNamespace(global_step=step)
    guard.on_step_begin(None, state, None)
    loss(model).backward()
    guard.on_pre_optimizer_step(None, state, None, model=model)


def test_a_gradient_is_looked_at_without_any_trainer():
    model = torch.nn.Linear(3, 2)
    take(FiniteGuard(), model, lambda m: m(torch.ones(1, 3)).sum())
    with pytest.raises(NonFiniteError, match=r"step 4: the gradient is not finite"):
        take(FiniteGuard(), model, lambda m: m(torch.ones(1, 3)).sum() * float("nan"), step=3)


def test_the_loss_of_held_out_rows_is_looked_at():
    guard, state = FiniteGuard(), SimpleNamespace(global_step=7)
    guard.on_log(None, state, None, logs={"eval_loss": 1.0})
    with pytest.raises(NonFiniteError, match="step 7: the loss of held-out rows is nan") as caught:
        guard.on_log(None, state, None, logs={"eval_loss": float("nan")})
    # There is no step that could be left out.
    assert caught.value.step is None


def test_float16s_scaler_leaves_steps_out_until_its_scale_is_at_the_bottom():
    scaler, model = torch.amp.GradScaler("cpu", init_scale=4.0), torch.nn.Linear(3, 2)
    optimizer, guard = torch.optim.SGD(model.parameters(), 0.1), FiniteGuard()
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(scaler=scaler), args=SimpleNamespace(world_size=1), training_step=None,
        compute_loss=None, _get_grad_norm=None, _save_checkpoint=None,
    )  # fmt: skip
    guard.watch(trainer)
    before = model.weight.clone()

    def step(factor, number):
        optimizer.zero_grad()
        take(guard, model, lambda m: scaler.scale(m(torch.ones(1, 3)).sum() * factor), number)
        scaler.step(optimizer)
        scaler.update()

    step(float("inf"), 0)
    step(float("inf"), 1)
    assert (guard.overflows, scaler.get_scale()) == (2, 1.0)
    assert torch.equal(model.weight, before)
    step(1.0, 2)
    assert guard.overflows == 2 and not torch.equal(model.weight, before)
    with pytest.raises(NonFiniteError, match="step 4: the gradient is not finite, at the loss scale 1 too") as caught:
        step(float("inf"), 3)
    assert caught.value.step is None


def test_steps_that_are_left_out_stand_in_checkpoints():
    guard, state = FiniteGuard(), SimpleNamespace(stateful_callbacks={"TrainerControl": {}})
    guard.on_train_begin(None, state, None)
    assert state.stateful_callbacks == {"TrainerControl": {}}
    guard.leave_out([5], state)
    written = json.loads(json.dumps(state.stateful_callbacks))
    assert written[KEPT_IN_CHECKPOINTS]["attributes"] == {"steps": [5]} and "TrainerControl" in written
    other = FiniteGuard()
    other.leave_out([9])
    other.on_train_begin(None, SimpleNamespace(stateful_callbacks=written), None)
    assert [step for step in range(12) if other.leaves_out(step)] == [5, 9]


# Rows.


def test_documents_of_packed_and_of_padded_rows():
    packed = {
        "input_ids": torch.tensor([[5, 6, 7, 8, 9, 0]]), "position_ids": torch.tensor([[0, 1, 2, 0, 1, 0]]),
    }  # fmt: skip
    assert documents(packed) == [(5, 6, 7), (8, 9), (0,)]
    padded = {"input_ids": torch.tensor([[5, 6, 0], [7, 8, 9]]), "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}
    assert documents(padded) == [(5, 6), (7, 8, 9)]
    answers = {"prompt_ids": torch.tensor([[0, 5]]), "prompt_mask": torch.tensor([[0, 1]]), "labels": None}
    assert documents(answers | {"KL_input_ids": torch.tensor([[1]])}) == [(5,)]


def test_rows_are_found_by_their_tokens():
    table = Dataset.from_list(
        [{"input_ids": [5, 6], "x": 1}, {"input_ids": [7], "x": 2}, {"input_ids": [6, 5], "x": 3}]
    )
    assert find_rows([(6, 5), (7,), (1, 2, 3)], table) == [1, 2]
    pairs = Dataset.from_list([{"chosen_input_ids": [1], "rejected_input_ids": [2]}] * 2)
    assert find_rows([(2,)], pairs) == [0, 1]
    assert find_rows([(5, 6)], table.to_iterable_dataset()) is None
    assert find_rows([(5, 6)], None) is None


# Spikes.

CALM = [2.0, 1.9, 2.1, 1.95, 2.05, 1.9, 2.0, 2.1]


@pytest.mark.parametrize(
    ("loss", "before", "leaps"),
    [
        (4.0, CALM, True),
        (2.15, CALM, False),
        (0.1, CALM, False),
        (4.0, CALM[:7], False),
        # A rise that is large beside the scatter and small beside the loss.
        (1.01, [1.0, 1.0001] * 8, False),
        (1.5, [1.0] * 8, True),
        # The median bears half of them being spikes themselves.
        (4.0, [*CALM, 40.0, 40.0, 40.0], True),
        # While it falls from high up, nothing leaps.
        (3.0, [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.5, 2.5], False),
    ],
)
def test_what_leaps(loss, before, leaps):
    found = spiked(loss, before)
    assert (found is not None) is leaps
    assert not found or found["score"] > 3.5


def test_spikes_are_told_and_kept(capsys):
    spikes, state = LossSpikes(), SimpleNamespace(global_step=0, log_history=[], is_world_process_zero=True)
    spikes.on_train_begin(None, state, None)
    for step, loss in enumerate([*CALM, 9.0, 2.0], start=1):
        state.global_step = step
        spikes.on_log(None, state, None, logs={"loss": loss})
    assert [(one["step"], one["loss"], one["median"]) for one in spikes.found] == [(9, 9.0, 2.0)]
    assert capsys.readouterr().err == "warning: step 9: the loss leapt to 9; the median of the 8 before it is 2\n"
    # A run that goes back to step 4 has not seen it.
    state.global_step, state.log_history = 4, [{"loss": loss} for loss in CALM[:4]]
    spikes.on_train_begin(None, state, None)
    assert spikes.found == []
    spikes.on_log(None, state, None, logs={"eval_loss": 9.0})
    for _ in range(KEPT * 4):
        spikes.on_log(None, state, None, logs={"loss": 2.0})
        spikes.on_log(None, state, None, logs={"loss": 9.0 + len(spikes.found)})
    assert len(spikes.found) <= KEPT
