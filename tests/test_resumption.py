"""A run that was killed and resumed is the run undisturbed: what steps are fed, what comes of them, what is left."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import write_jsonl
from safetensors.torch import load_file

from hf_peft_recipes import get_recipe
from hf_peft_recipes.bench.receipts import embedded_options, receipts_folder
from hf_peft_recipes.bench.resumption import Resumption, compare, require, verify_resume, weights_digest
from hf_peft_recipes.errors import ReceiptError, UserError
from hf_peft_recipes.methods.virtual_tokens import NETWORK_FILE
from hf_peft_recipes.report.receipt import resumption_table
from hf_peft_recipes.trajectory import Point, Trajectory, documents, read_trajectory

SHORT = {
    "max_steps": 4, "save_steps": 2, "logging_steps": 1, "eval_strategy": "no", "certify": "off",
    "evaluation.max_rows": 4, "data.validation_rows": 8, "per_device_train_batch_size": 1,
}  # fmt: skip
AT_ONCE = {"grpo": 8, "rloo": 8, "kto": 2}
"""Rows of a micro-batch that a recipe needs at least."""
POINTS = [Point(step, f"{step}" * 64, 1 / step, 2 / step, 3 / step) for step in range(1, 7)]


def digests(**inputs):
    return sorted(documents({name: torch.tensor(value) for name, value in inputs.items()}))


def test_what_a_step_is_fed_does_not_depend_on_how_it_is_cut():
    whole = digests(
        input_ids=[[5, 6, 7, 0], [8, 9, 0, 0], [1, 2, 3, 4]],
        attention_mask=[[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]],
        labels=[[-100, 6, 7, -100], [8, 9, -100, -100], [-100, -100, 3, 4]],
    )
    apart = digests(input_ids=[[5, 6, 7]], labels=[[-100, 6, 7]]) + digests(
        input_ids=[[8, 9, 0, 0], [1, 2, 3, 4]], attention_mask=[[1, 1, 0, 0], [1, 1, 1, 1]],
        labels=[[8, 9, -100, -100], [-100, -100, 3, 4]],
    )  # fmt: skip
    packed = digests(
        input_ids=[[1, 2, 3, 4, 8, 9, 5, 6, 7]], position_ids=[[0, 1, 2, 3, 0, 1, 0, 1, 2]],
        # Upstream masks the first token of each packed document.
        labels=[[-100, -100, 3, 4, -100, 9, -100, 6, 7]],
    )  # fmt: skip
    assert len(whole) == len(set(whole)) == 3
    assert whole == sorted(apart) == packed


@pytest.mark.parametrize(
    "other",
    [
        {"input_ids": [[5, 6, 8]], "labels": [[-100, 6, 7]]},
        {"input_ids": [[5, 6, 7]], "labels": [[-100, -100, 7]]},
        {"input_ids": [[5, 6, 7]], "labels": [[-100, 6, 7]], "position_ids": [[0, 1, 0]]},
        {"input_ids": [[5, 6, 7]], "labels": [1]},
        {"input_ids": [[5, 6, 7]], "labels": [[-100, 6, 7]], "label": [True]},
    ],
)
def test_other_tokens_labels_or_bounds_are_another_batch(other):
    assert digests(**other) != digests(input_ids=[[5, 6, 7]], labels=[[-100, 6, 7]])


def test_a_half_line_of_a_kill_is_neither_read_nor_gone_on_with(tmp_path):
    path = tmp_path / "run.jsonl"
    line = json.dumps(vars(POINTS[0])).encode()
    path.write_bytes(line + b"\n" + line[:30])
    assert read_trajectory(path) == POINTS[:1]

    class OfStep:
        args = type("Arguments", (), {"world_size": 1})
        state = type("State", (), {"global_step": 2})
        compute_loss = training_step = _maybe_log_save_evaluate = staticmethod(lambda *_, **__: torch.tensor(math.nan))

        def is_world_process_zero(self):
            return True

    trainer = OfStep()
    Trajectory(path).watch(trainer)
    trainer.training_step()
    trainer._maybe_log_save_evaluate(None, torch.tensor(0.1), learning_rate=0.5)
    trainer._maybe_log_save_evaluate(None, None)
    again = read_trajectory(path)
    assert again[0] == POINTS[0] and len(again) == 2
    assert again[1].step == 2 and math.isnan(again[1].loss) and again[1].grad_norm == float(torch.tensor(0.1))


def test_a_step_that_differs_is_named():
    done = [*POINTS[:4], *POINTS[2:]]
    checks, first = compare(POINTS, done)
    assert first is None and all(check.ok for check in checks)
    for field in ("batch", "loss", "grad_norm", "learning_rate"):
        value = getattr(POINTS[4], field)
        other = replace(POINTS[4], **{field: "x" * 64 if field == "batch" else value * (1 + 1e-9)})
        checks, first = compare(POINTS, [*POINTS[:4], other, POINTS[5]])
        assert first == 5 and [check.ok for check in checks].count(False) == 1, field
        near, _ = compare(POINTS, [*POINTS[:4], other, POINTS[5]], exact=False)
        assert all(check.ok for check in near) == (field in ("loss", "grad_norm")), field
    short, _ = compare(POINTS, POINTS[:5])
    assert not short[0].ok


def held_against_the_whole(name, folder, at=2, **values):
    """Train a recipe to its end, and again from the checkpoint of a step; return what differs, and the whole run."""
    options = {**SHORT, **values}
    get_recipe(name, **options).train(folder / "whole", progress=False, trajectory=folder / "whole.jsonl")
    (folder / "cut").mkdir()
    for kept in ("recipe.yaml", f"checkpoint-{at}"):
        source, target = folder / "whole" / kept, folder / "cut" / kept
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    again = get_recipe(name, **options)
    again.train(folder / "cut", resume=True, progress=False, trajectory=folder / "cut.jsonl")
    whole, cut = (read_trajectory(folder / f"{run}.jsonl") for run in ("whole", "cut"))
    checks, _ = compare(whole[at:], cut)
    differing = [check for check in checks if not check.ok]
    same = weights_digest(folder / "whole") == weights_digest(folder / "cut")
    return differing + ([] if same else ["final weights"])


@pytest.mark.slow
def test_virtual_tokens_behind_a_network_go_on_and_the_best_of_them_are_taken(tmp_path):
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps"}
    assert held_against_the_whole("p_tuning", tmp_path, **best) == []
    state = json.loads((tmp_path / "whole" / "checkpoint-4" / "trainer_state.json").read_text("utf-8"))
    kept = f"checkpoint-{state['best_global_step']}/"
    ends, wanted = (load_file(tmp_path / "whole" / f"{at}adapter_model.safetensors") for at in ("", kept))
    assert all(torch.equal(ends[name], wanted[name]) for name in wanted)
    # A checkpoint of other software holds no network.
    (tmp_path / "cut" / "checkpoint-4" / NETWORK_FILE).unlink()
    recipe = get_recipe("p_tuning", **{**SHORT, **best})
    with pytest.raises(UserError, match="without the network that makes them"):
        recipe.build_trainer(tmp_path / "other").train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-4"))


@pytest.mark.slow
def test_answers_that_are_learned_from_twice_are_not_drawn_anew(tmp_path):
    fewer = {"num_iterations": 2, "max_completion_length": 4, "per_device_train_batch_size": 4, "num_generations": 4}
    assert held_against_the_whole("grpo", tmp_path, at=3, save_steps=3, gradient_accumulation_steps=1, **fewer) == []
    state = json.loads((tmp_path / "cut" / "checkpoint-4" / "trainer_state.json").read_text("utf-8"))
    assert state["stateful_callbacks"]["LearningSignal"]["attributes"]["batches"] == 2


@pytest.mark.slow
def test_a_stream_goes_on_in_its_second_pass(tmp_path):
    rows = [{"question": f"What is {n} plus one?", "answer": f"It is {n + 1}."} for n in range(14)]
    path = write_jsonl(tmp_path / "few.jsonl", rows)
    differing = held_against_the_whole(
        "lora", tmp_path, at=4, max_steps=6, dataset=str(path), lora_dropout=0.1, packing=False,
        gradient_accumulation_steps=3, **{"data.streaming": True},
    )  # fmt: skip
    assert differing == []


@pytest.mark.slow_sweep
# Every recipe that trains once has a receipt; to resolve them all takes seconds, whatever is run.
@pytest.mark.parametrize("name", sorted(path.stem for path in receipts_folder().glob("*.json")))
def test_every_recipe_goes_on_as_if_nothing_had_been(tmp_path, name):
    own = get_recipe(name).resolved.value("data.dataset") is not None
    options = {key: None if value == "null" else value for key, value in embedded_options(name).items()} if own else {}
    options |= {"per_device_train_batch_size": AT_ONCE[name]} if name in AT_ONCE else {}
    assert held_against_the_whole(name, tmp_path, **options) == []


@pytest.mark.slow
def test_a_killed_run_is_proved(command):
    finished = command("verify-resume", "lora", "--steps", 4, "--json")
    assert finished.returncode == 0, finished.stderr
    found = json.loads(finished.stdout)
    assert found["holds"] and found["first_difference"] is None
    assert found["resumed_from"] <= found["reached"] <= found["steps"] == 4
    assert [check["name"] for check in found["checks"]][-1] == "final weights (sha256)"


def test_what_differs_is_told_with_its_step():
    other = replace(POINTS[4], loss=0.7)
    checks, first = compare(POINTS, [*POINTS[:4], other, POINTS[5]])
    found = Resumption("lora", 6, "KILL", 4, 3, 1, checks, first)
    with pytest.raises(
        ReceiptError, match=r"lora, killed and resumed, is not .* loss 0\.7, undisturbed 0\.2 \(step 5\)"
    ):
        require(found)
    table = resumption_table(found.shown())
    assert table.row_count == len(checks) and "IS NOT" in table.title and "resumed from step 3" in table.caption
    require(replace(found, checks=checks[:2]))


@pytest.mark.slow_sweep
def test_another_number_of_processes_goes_on_with_the_same_samples():
    found = verify_resume("lora", processes=2)
    require(found)
    assert {check.name: check.tolerance for check in found.checks}["what each step was fed"] == "exactly"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"name": "ilf"}, "learns in rounds"),
        ({"steps": 3}, "--steps 3: 4 at least"),
        ({"at": 1}, "--at 1: a step between 2 and 7"),
        ({"at": 8}, "--at 8: a step between 2 and 7"),
        ({"signal_name": "HUP"}, "--signal HUP: KILL or TERM"),
    ],
)
def test_what_cannot_be_proved_is_refused_before_anything_runs(words, message):
    with pytest.raises(UserError, match=message):
        verify_resume(**{"name": "lora", **words})
