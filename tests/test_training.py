"""Runs from end to end on the embedded model: what they leave behind, and that it can be used by others."""

import json
import shutil
import subprocess
import sys
from functools import cache

import jsonschema
import pytest
import torch
import yaml
from conftest import FAST

from hf_peft_recipes import RunResult, UserError, get_recipe
from hf_peft_recipes.errors import NotTrainedError
from hf_peft_recipes.results import read_schema

METHODS = ("lora", "qlora", "lora_fp8", "full")


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    """Return a function from a method to the result of its short run, which is made once."""

    @cache
    def train(method):
        settings = {**FAST, "save_strategy": "steps", "save_steps": 4, "certify": "auto"}
        recipe = get_recipe(method, max_steps=8, learning_rate=1e-3, max_length=128, **settings)
        return recipe.train(tmp_path_factory.mktemp(method) / "out", progress=False)

    return train


@pytest.fixture(scope="module", params=METHODS)
def run(request, short_run):
    """Return `(method, result)` of a short run of every method."""
    return request.param, short_run(request.param)


def test_a_fresh_process_finds_what_was_trained(run):
    method, result = run
    certificate = result.record["certificate"]
    assert certificate["status"] == "passed"
    assert len(certificate["checks"]) == (4 if method == "full" else 7)
    # One machine, one thing: what differs is how a log-probability is printed.
    assert certificate["figures"]["log_probability_difference"] < 1e-5


def test_the_record_keeps_to_its_schema(run):
    _, result = run
    written = json.loads((result.folder / "result.json").read_text())
    assert written == json.loads(json.dumps(result.record))
    jsonschema.validate(written, read_schema(), format_checker=jsonschema.FormatChecker())
    assert (written["status"], written["exit_code"]) == ("done", 0)
    for name in ("peak_memory_bytes", "tokens_per_second", "step_seconds", "first_step_seconds"):
        assert written["measured"][name] > 0
    assert set(written["metrics"]["before"]) == set(written["metrics"]["after"])
    assert {"loss", "perplexity", "accuracy", "macro_f1"} <= set(written["metrics"]["after"])
    assert set(written["metrics"]["intervals"]["difference"]) == set(written["metrics"]["difference"])
    assert set(written["metrics"]["classes"]["after"]) == set(written["metrics"]["confusion"]["labels"])
    assert written["data"]["ledger"]["rows"]["kept"] == 1200
    assert RunResult.read(result.folder).metrics == result.metrics


def test_everything_that_should_train_did(run):
    method, result = run
    proof = result.record["proof"]
    assert proof["unproved"] == {}
    assert proof["judged"]
    # r 16 on seven linear layers of four blocks, two tensors each; the whole model has nine a block and two more.
    assert proof["trainable_tensors"] == {"full": 38}.get(method, 56)
    assert (proof["frozen_tensors_checked"] > 0) is (method != "full")
    parameters = result.record["parameters"]
    assert (parameters["trainable"] == parameters["total"]) is (method == "full")


def test_parameters_count_quantised_weights_as_they_are(run):
    method, result = run
    total = result.record["parameters"]["total"]
    from transformers import AutoModelForCausalLM

    from hf_peft_recipes.embedded import MODEL_DIR

    base = AutoModelForCausalLM.from_pretrained(MODEL_DIR).num_parameters()
    assert total == base + (result.record["parameters"]["trainable"] if method != "full" else 0)


def test_the_folder_holds_what_is_needed_and_no_secrets(run):
    method, result = run
    names = {path.name for path in result.folder.iterdir()}
    weights = (
        {"model.safetensors", "config.json"}
        if method == "full"
        else {"adapter_model.safetensors", "adapter_config.json"}
    )
    assert weights | {"recipe.yaml", "result.json", "loss.png", "tokenizer.json", "chat_template.jinja"} <= names
    assert "README.md" not in names
    assert (result.folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]


def test_the_recipe_file_repeats_the_run(short_run, tmp_path):
    # Of the methods the one with the most sections.
    result = short_run("qlora")
    content = yaml.safe_load((result.folder / "recipe.yaml").read_text())
    assert "output_dir" not in content["training"]
    again = get_recipe(str(result.folder / "recipe.yaml")).train(tmp_path / "again", progress=False)
    losses = [[point.get("loss") for point in record["loss_curve"]] for record in (result.record, again.record)]
    assert losses[0] == losses[1]
    assert again.metrics["after"] == result.metrics["after"]


def test_a_folder_in_use_is_refused_overwritten_or_resumed(short_run, tmp_path):
    result = short_run("lora")
    recipe = get_recipe(str(result.folder / "recipe.yaml"))
    with pytest.raises(UserError, match="already holds a run"):
        recipe.train(result.folder)
    with pytest.raises(UserError, match="is done"):
        recipe.train(result.folder, resume=True)
    # As if it had been killed after the fourth step.
    folder = tmp_path / "killed"
    shutil.copytree(result.folder, folder)
    shutil.rmtree(folder / "checkpoint-8")
    (folder / "result.json").write_text(json.dumps({**result.record, "status": "failed"}))
    resumed = recipe.train(folder, resume=True, progress=False)
    losses = [[point["loss"] for point in record["loss_curve"][-4:]] for record in (result.record, resumed.record)]
    assert losses[0] == losses[1]
    assert resumed.metrics == result.metrics
    (folder / "mine.txt").touch()
    short = get_recipe("lora", max_steps=1, max_length=128, **FAST).train(folder, overwrite=True, progress=False)
    assert not list(folder.glob("checkpoint-*"))
    # An earlier run is given up for one that runs, not for one that is refused.
    with pytest.raises(UserError):
        get_recipe("lora", target_modules=["nothing"], **FAST).train(folder, overwrite=True, progress=False)
    assert RunResult.read(folder).status == "done"
    assert (folder / "mine.txt").exists()
    assert short.record["measured"]["steps"] == 1


@pytest.mark.parametrize("method", ["qlora", "full"])
@pytest.mark.usefixtures("real_processes")
def test_evaluate_and_chat_from_the_folder(method, short_run, command):
    result = short_run(method)
    finished = command("evaluate", result.folder, "--json")
    assert finished.returncode == 0, finished.stderr
    metrics = json.loads(finished.stdout)["metrics"]
    # The same rows, model and arithmetic as at the end of the run.
    assert metrics["after"] == pytest.approx(result.metrics["after"], rel=1e-4)
    assert metrics["before"] == pytest.approx(result.metrics["before"], rel=1e-4)
    question = "Review: The soup was cold.\nIs this review positive or negative?"
    finished = command("chat", result.folder, "--prompt", question, "--json", "--max_new_tokens", "4")
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout)["answer"]


def test_chat_streams_and_remembers(short_run):
    result = short_run("lora")
    process = subprocess.run(
        [sys.executable, "-m", "hf_peft_recipes", "chat", str(result.folder), "--max_new_tokens", "3"],
        input="Hello\nAnd again\n\n", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert len(process.stdout.splitlines()) == 2


def test_dry_run_writes_nothing(tmp_path, monkeypatch, rows):
    monkeypatch.chdir(tmp_path)
    result = get_recipe("lora", dataset=rows).train(tmp_path / "out", dry_run=True, progress=False)
    assert result.status == "dry_run"
    assert len(result.record["loss_curve"]) == 1
    assert list(tmp_path.iterdir()) == []


def test_objects_in_place_of_names(tmp_path, rows):
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    from hf_peft_recipes.embedded import MODEL_DIR

    class Count(TrainerCallback):
        steps = 0

        def on_step_end(self, *_, **__):
            self.steps += 1

    count = Count()
    recipe = get_recipe(
        "lora", model=AutoModelForCausalLM.from_pretrained(MODEL_DIR), tokenizer=AutoTokenizer.from_pretrained(MODEL_DIR),
        dataset=Dataset.from_list(rows), callbacks=[count], max_steps=2, **FAST,
    )  # fmt: skip
    assert recipe.train(tmp_path / "out", progress=False).status == "done"
    assert count.steps == 2


def test_build_trainer_gives_a_trl_trainer(tmp_path, rows):
    from trl import SFTTrainer

    trainer = get_recipe("qlora", dataset=rows, max_steps=2, **FAST).build_trainer(tmp_path / "out")
    assert isinstance(trainer, SFTTrainer)
    assert trainer.train().global_step == 2
    # TRL casts the adapters of quantised models to bfloat16; ours stay in float32.
    assert {tensor.dtype for tensor in trainer.model.parameters() if tensor.requires_grad} == {torch.float32}


@pytest.mark.parametrize(("dtype", "found"), [(None, torch.bfloat16), ("float32", torch.float32)])
def test_the_base_is_loaded_in_the_recipes_dtype(tmp_path, rows, dtype, found):
    overrides = {"dtype": dtype} if dtype else {}
    trainer = get_recipe("lora", dataset=rows, device="H100", use_cpu=True, **overrides).build_trainer(tmp_path)
    assert {tensor.dtype for tensor in trainer.model.parameters() if not tensor.requires_grad} == {found}


def test_what_stays_frozen_under_plain_trl_trains_here(tmp_path, rows):
    """IA3 on an NF4 base: cast to bfloat16, as TRL has it, its scales of one never move; in float32 they do."""
    path = tmp_path / "ia3.yaml"
    path.write_text(
        "extends: qlora\nremove: [adapter]\nadapter:\n  peft_type: IA3\n  target_modules: [k_proj, v_proj, down_proj]\n"
        "  feedforward_modules: [down_proj]\n"
    )
    result = get_recipe(str(path), dataset=rows, max_steps=5, **FAST).train(tmp_path / "out", progress=False)
    assert result.record["proof"]["proved_tensors"] == 12
    assert result.record["proof"]["unproved"] == {}


def test_a_run_that_stops_itself_says_so_in_its_record(tmp_path, rows):
    # Steps of 1e-12 vanish in the rounding of float32 weights.
    recipe = get_recipe("full", dataset=rows, max_steps=5, learning_rate=1e-12, warmup_steps=0, **FAST)
    with pytest.raises(NotTrainedError, match="its value does not change"):
        recipe.train(tmp_path / "out", progress=False)
    written = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (written["status"], written["exit_code"]) == ("failed", 3)
    jsonschema.validate(written, read_schema())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"lr_scheduler_type": "cosin"}, "training: "),
        ({"target_modules": ["nothing"]}, "adapter: "),
        ({"attn_implementation": "nothing"}, "model .* cannot be loaded"),
    ],
)
def test_upstreams_refusals_are_one_line_and_leave_nothing(tmp_path, rows, overrides, message):
    with pytest.raises(UserError, match=message) as caught:
        get_recipe("lora", dataset=rows, **overrides, **FAST).train(tmp_path / "out", progress=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_packed_rows_are_masked_apart(tmp_path):
    """A packed row must give the loss of its documents, each alone."""
    rows = [{"question": f"What is {n} plus one?", "answer": f"It is {n + 1}."} for n in range(6)]
    overrides = {"data.validation_size": 0.0, "max_length": 512, "evaluation.max_rows": 0}
    trainer = get_recipe("lora", dataset=rows, **overrides).build_trainer(tmp_path)
    (packed,) = trainer.train_dataset
    assert len(packed["seq_lengths"]) == 6
    trainer.model.eval()
    batch = trainer.data_collator([packed])
    with torch.no_grad():
        together = trainer.compute_loss(trainer.model, dict(batch)).item()
        total = count = 0
        start = 0
        for length in packed["seq_lengths"]:
            ids = torch.tensor([packed["input_ids"][start : start + length]])
            labels = torch.tensor([packed["labels"][start : start + length]])
            supervised = int((labels[:, 1:] != -100).sum())
            loss = trainer.model.get_base_model()(input_ids=ids, use_cache=False).logits.float()
            total += torch.nn.functional.cross_entropy(loss[0, :-1], labels[0, 1:], reduction="sum").item()
            count += supervised
            start += length
    assert together == pytest.approx(total / count, rel=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", pytest.param("full", marks=pytest.mark.slow_sweep)])
def test_the_demo_learns(method, command, tmp_path):
    """The promise of the README: near chance before, 90 % or more after, on rows that were never seen."""
    finished = command("train", method, "--output_dir", tmp_path / "out", "--certify", "off", "--json")
    assert finished.returncode == 0, finished.stderr
    record = json.loads(finished.stdout)
    assert 0.4 <= record["metrics"]["before"]["accuracy"] <= 0.6
    assert record["metrics"]["after"]["accuracy"] >= 0.9
    assert record["metrics"]["rows"] == 200
    assert record["metrics"]["split"] == "test"
    assert record["metrics"]["after"]["loss"] < record["metrics"]["before"]["loss"]
    assert "Warning" not in finished.stderr


@pytest.mark.slow
def test_raw_text_is_learned(tmp_path):
    result = get_recipe("pretrain", max_steps=12, **FAST).train(tmp_path / "out", progress=False)
    before, after = result.metrics["before"], result.metrics["after"]
    assert after["perplexity"] < 0.8 * before["perplexity"], (before, after)
