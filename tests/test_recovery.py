"""Runs that go on after a step that could not be taken, held to the losses and weights of runs that had it easy."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import jsonschema
import pytest
import torch
from conftest import ROOT
from faulty_steps import FailingOptimizer, LittleMemory, PoisonedRow, WithoutGradient
from safetensors.torch import load_file

from hf_peft_recipes import RunResult, UserError, get_recipe, recovery
from hf_peft_recipes.errors import NonFiniteError, OutOfMemoryError
from hf_peft_recipes.finite.guard import KEPT_IN_CHECKPOINTS
from hf_peft_recipes.results import read_schema

SHORT = {
    "evaluation.max_rows": 0, "data.validation_size": 0.0, "eval_strategy": "no", "certify": "off", "packing": False,
    "max_length": 64, "max_steps": 10, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1,
    "learning_rate": 1e-3, "logging_steps": 1, "save_steps": 3,
    # Where the processor has bfloat16, losses are equal to three digits alone, and 1e6 is no rate that breaks all.
    "bf16": False, "dtype": "float32",
}  # fmt: skip
STEPS = list(range(1, 11))
"""One epoch: every row is met once."""


def make(rows, callback=None, **overrides):
    return get_recipe("lora", dataset=rows, callbacks=[callback] if callback else [], **{**SHORT, **overrides})


def losses(result):
    return {point["step"]: point["loss"] for point in result.record["loss_curve"]}


def weights(result):
    return load_file(result.folder / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def questions():
    return [{"question": f"What is {n} plus one?", "answer": f"It is {n + 1}."} for n in range(40)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, questions):
    """Return the result of a run to which nothing happens."""
    return make(questions).train(tmp_path_factory.mktemp("undisturbed") / "out", progress=False)


@pytest.fixture(scope="module")
def rolled_back(tmp_path_factory, questions):
    """Return the poison, and the result of a run that met it twice, was stopped, and went on with another rollback."""
    folder, poison = tmp_path_factory.mktemp("rolled_back") / "out", PoisonedRow(7, 24)
    recipe = make(questions, poison)
    with pytest.raises(NonFiniteError, match="steps left out before: 1, and --max_rollbacks allows no more"):
        recipe.train(folder, on_nonfinite="rollback", max_rollbacks=1, progress=False)
    return poison, RunResult.read(folder), recipe.train(
        folder, on_nonfinite="rollback", max_rollbacks=2, resume=True, progress=False
    )  # fmt: skip


def test_a_poisoned_step_is_left_out_and_all_others_are_as_without_its_gradient(rolled_back, questions, tmp_path):
    poison, _, result = rolled_back
    left_out = [one["step"] for one in result.record["recoveries"]]
    assert len(left_out) == 2 and {one["kind"] for one in result.record["recoveries"]} == {"rollback"}
    assert [row for one in result.record["recoveries"] for row in one["rows"] if row in poison.rows]
    # Poison for no row at all: what is hooked into is computed part by part, which rounds otherwise.
    callbacks = [WithoutGradient(left_out), PoisonedRow()]
    other = get_recipe("lora", dataset=questions, callbacks=callbacks, **SHORT).train(tmp_path / "out", progress=False)
    assert sorted(losses(result)) == [step for step in STEPS if step not in left_out]
    assert losses(result) == {step: loss for step, loss in losses(other).items() if step not in left_out}
    assert all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(result).items())
    assert result.record["proof"]["unproved"] == {}


def test_what_is_left_out_is_not_tried_again_after_a_kill(rolled_back):
    poison, stopped, result = rolled_back
    (first,), (again, second) = stopped.record["recoveries"], result.record["recoveries"]
    assert first == again and first["step"] < second["step"]
    # The second one stopped the run, and then again when it had gone on; the first one was never fed once more.
    assert poison.met == [first["step"], second["step"], second["step"]]
    assert (stopped.record["exit_code"], stopped.record["nonfinite"]["step"]) == (3, second["step"])
    assert result.record["numbers"]["skipped_steps"] == [first["step"], second["step"]]


def test_what_is_left_out_stands_in_the_checkpoints(rolled_back):
    _, _, result = rolled_back
    state = json.loads((result.folder / "checkpoint-10" / "trainer_state.json").read_text())
    kept = state["stateful_callbacks"][KEPT_IN_CHECKPOINTS]["attributes"]["steps"]
    assert kept == result.record["numbers"]["skipped_steps"]


def test_the_record_and_the_table_tell_of_it(rolled_back):
    _, _, result = rolled_back
    jsonschema.validate(result.record, read_schema())
    steps = ", ".join(str(one["step"]) for one in result.record["recoveries"])
    assert f"{steps} (not finite)" in str(result)
    assert all(len(result.record["measured"]["series"][name]) == result.record["measured"]["steps"] for name in (
        "seconds", "tokens",
    ))  # fmt: skip


@pytest.mark.slow_sweep
def test_processes_leave_out_a_step_together(rolled_back, questions, tmp_path):
    """The poison is in the rows of one of two processes; both go back, and train on as one process does."""
    script, folder = tmp_path / "train.py", tmp_path / "out"
    settings = {**SHORT, "dataset": questions, "per_device_train_batch_size": 2, "use_cpu": True}
    script.write_text(
        f"from faulty_steps import PoisonedRow\nfrom hf_peft_recipes import get_recipe\n"
        f"get_recipe('lora', callbacks=[PoisonedRow(7, 24)], **{settings!r}).train("
        f"{str(folder)!r}, on_nonfinite='rollback', progress=False)\n"
    )
    options = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, "--dynamo_backend", "no", str(script)]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stderr
    record, (_, _, alone) = RunResult.read(folder).record, rolled_back
    assert [one["step"] for one in record["recoveries"]] == alone.record["numbers"]["skipped_steps"]
    assert all(f"of process {one['process']}; training rows" in one["error"] for one in record["recoveries"])
    together = {point["step"]: point["loss"] for point in record["loss_curve"]}
    assert together == pytest.approx(losses(alone), rel=1e-3)


def test_without_any_checkpoint_a_run_goes_back_to_its_beginning(questions, tmp_path, capsys):
    result = make(questions, PoisonedRow(7), save_strategy="no").train(
        tmp_path / "out", on_nonfinite="rollback", progress=False
    )
    (found,) = result.record["recoveries"]
    assert found["from_step"] == 0
    assert f"going on from step 0, step {found['step']} is left out" in capsys.readouterr().err
    # It was needed, and not wanted.
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_a_step_that_does_not_fit_is_taken_with_fewer_rows_at_a_time(undisturbed, questions, tmp_path, capsys):
    result = make(questions, LittleMemory(step=5, rows=1)).train(tmp_path / "out", progress=False)
    said = [
        (one["kind"], one["step"], one["from_step"], one["per_device_train_batch_size"], one["gradient_accumulation_steps"])
        for one in result.record["recoveries"]
    ]  # fmt: skip
    # Twice, and nothing that was learned is lost.
    assert said == [("smaller_micro_batch", 5, 4, 2, 2), ("smaller_micro_batch", 5, 4, 1, 4)]
    assert "allocate" in result.record["recoveries"][0]["error"]
    assert losses(result) == pytest.approx(losses(undisturbed), rel=1e-4)
    assert all(
        torch.allclose(tensor, weights(undisturbed)[name], atol=1e-4) for name, tensor in weights(result).items()
    )
    jsonschema.validate(result.record, read_schema())
    assert "1 × 4 from step 5 on: out of memory" in str(result)
    assert "going on from step 4 with --per_device_train_batch_size 2" in capsys.readouterr().err


def test_an_optimizer_that_fails_is_not_trusted(undisturbed, questions, tmp_path):
    result = make(questions, FailingOptimizer(step=5)).train(tmp_path / "out", progress=False)
    (found,) = result.record["recoveries"]
    assert (found["step"], found["from_step"]) == (5, 3)
    assert losses(result) == pytest.approx(losses(undisturbed), rel=1e-4)


def test_where_nothing_fits_the_plan_is_asked(questions, tmp_path):
    recipe = make(questions, LittleMemory(step=2, rows=0), per_device_train_batch_size=2)
    with pytest.raises(
        OutOfMemoryError, match=r"step 2 ran out of memory .* with one row at a time; planned were .*GiB"
    ):
        recipe.train(tmp_path / "out", progress=False)
    record = RunResult.read(tmp_path / "out").record
    assert (record["status"], record["exit_code"], len(record["recoveries"])) == ("failed", 11, 1)
    with pytest.raises(OutOfMemoryError, match=r"^step 2 ran out of memory") as caught:
        recipe.train(tmp_path / "out", on_oom="stop", overwrite=True, progress=False)
    assert "planned" not in str(caught.value)
    assert "recoveries" not in RunResult.read(tmp_path / "out").record


@pytest.mark.parametrize(("rows", "less"), [(8, 4), (6, 3), (3, 1), (5, 1), (9, 3), (2, 1), (1, 1)])
def test_half_of_a_micro_batch_divides_it(rows, less):
    assert recovery.halved(rows) == less


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: 1 bytes"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_is_taken_for_a_want_of_memory(error, is_memory):
    assert recovery.is_out_of_memory(error) is is_memory


@pytest.mark.parametrize(
    ("policy", "changes", "said"),
    [
        (recovery.Policy(tied="so it is", advise=lambda: "; ask"), {}, "would be another run: so it is; ask"),
        (
            recovery.Policy(),
            {"world_size": 2},
            "--resume with --per_device_train_batch_size 2 --gradient_accumulation_",
        ),
        (recovery.Policy(), {"drops": True}, "an epoch would be of other steps"),
    ],
)
def test_where_fewer_rows_would_be_another_run_there_are_not_fewer(policy, changes, said):
    arguments = SimpleNamespace(per_device_train_batch_size=4, gradient_accumulation_steps=1, train_batch_size=4)
    arguments.world_size = changes.get("world_size", 1)

    def values(args, _):
        # Of 10 rows the last, incomplete batch is dropped, or not.
        batches = 10 // args.per_device_train_batch_size + (0 if changes.get("drops") else 1)
        return (1, -(-batches // args.gradient_accumulation_steps))

    trainer = SimpleNamespace(
        args=arguments, state=SimpleNamespace(global_step=4), set_initial_training_values=values,
        get_train_dataloader=lambda: None,
    )  # fmt: skip
    failure = recovery._Failure("no memory", {}, True, "step")
    with pytest.raises(OutOfMemoryError, match=said):
        recovery._halve(trainer, failure, policy, [])
    assert arguments.per_device_train_batch_size == 4


def test_objectives_whose_rows_are_tied_are_known():
    tied = {name: recovery.policy_of(get_recipe(name).resolved, SimpleNamespace(
        on_nonfinite="stop", max_rollbacks=3, on_oom="halve", advise=str)).tied for name in ("sft", "dpo", "kto")}  # fmt: skip
    assert [name for name, why in tied.items() if why] == ["kto"]


@pytest.mark.parametrize(
    ("options", "overrides", "said"),
    [
        ({"on_nonfinite": "rolback"}, {}, "--on_nonfinite rolback; did you mean 'rollback'"),
        ({"on_oom": "halven"}, {}, "--on_oom halven; did you mean 'halve'"),
        ({"max_rollbacks": -1}, {}, "--max_rollbacks -1: 0 or more"),
        ({"on_nonfinite": "rollback"}, {"save_only_model": True}, "leave training.save_only_model out"),
        ({"on_nonfinite": "rollback"}, {"fp16": True, "bf16": False}, "the gradient scaler leaves out such steps"),
    ],
)
def test_what_is_not_known_or_contradicts_itself_is_told_first(options, overrides, said, tmp_path, questions):
    with pytest.raises(UserError, match=said):
        make(questions, **overrides).train(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_the_command_hands_on_what_is_to_become_of_a_run(command, tmp_path):
    finished = command("train", "lora", "--output_dir", tmp_path / "out", "--max_rollbacks", "-2", "--on_oom", "stop")
    assert (finished.returncode, "--max_rollbacks -2: 0 or more is wanted" in finished.stderr) == (2, True)


def test_rounds_roll_back_by_themselves(tmp_path):
    with pytest.raises(UserError, match="--on_nonfinite: rounds are rolled back"):
        get_recipe("rft").train(tmp_path / "out", on_nonfinite="rollback")
