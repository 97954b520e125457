"""A step timed on few layers: what runs is what would run, and the rest of the layers is added in a straight line."""

import json
from dataclasses import replace

import pytest
from conftest import write_jsonl
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, TrainerControl, TrainerState

from hf_peft_recipes import get_recipe
from hf_peft_recipes.device import detect_device
from hf_peft_recipes.embedded import MODEL_DIR
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.measure.clock import Step
from hf_peft_recipes.plan import timing
from hf_peft_recipes.plan.documents import Documents
from hf_peft_recipes.plan.make_job import make_job
from hf_peft_recipes.spec.recompute import Recompute
from hf_peft_recipes.speed import speed_up

CONFIG = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 7, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 1280, "max_position_embeddings": 64, "dtype": "bfloat16",
}  # fmt: skip
QUICK = {"max_length": 64, "gradient_accumulation_steps": 1, "per_device_train_batch_size": 1}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(timing, "WARMUP", (1, 0.0))
    monkeypatch.setattr(timing, "STEPS", (2, 0.0))


def job_of(recipe, config=CONFIG, documents=None):
    return make_job(recipe.resolved, config, "x", detect_device(), documents=documents)


def test_layers_that_were_not_timed_are_added(monkeypatch):
    # A layer takes 0.1 s, everything else 0.3 s, and a step has 64 tokens.
    monkeypatch.setattr(
        timing, "_steps", lambda job, recipe, layers, amount, rows: [Step(0.3 + 0.1 * layers, 64, 64, 1, 64**2)] * 3
    )
    recipe = get_recipe("lora", **QUICK)
    found = timing.time_step(job_of(recipe), recipe.resolved)
    assert found.layers == (1, 4) and found.step_seconds == pytest.approx(1.0)
    assert found.tokens_per_second == pytest.approx(64)
    few = timing.time_step(job_of(recipe, CONFIG | {"num_hidden_layers": 3}), recipe.resolved)
    assert few.layers == (3,) and few.step_seconds == pytest.approx(0.6)
    turns = ["sliding_attention", "full_attention"] * 5
    apart = timing.time_step(job_of(recipe, CONFIG | {"num_hidden_layers": 10, "layer_types": turns}), recipe.resolved)
    assert apart.layers == (2, 8) and apart.step_seconds == pytest.approx(1.3)


def test_what_is_computed_again_is_timed(monkeypatch):
    """A block's second time takes 0.04 s, a feed-forward part's 0.02 s."""

    def steps(job, recipe, layers, amount, rows):
        assert amount.blocks + amount.feed_forwards in (0, layers)
        seconds = 0.3 + 0.1 * layers + 0.04 * amount.blocks + 0.02 * amount.feed_forwards
        return [Step(seconds, 64, 64, 1, 64**2)] * 3

    monkeypatch.setattr(timing, "_steps", steps)
    recipe = get_recipe("lora", **QUICK)
    job = replace(job_of(recipe), recompute=Recompute(2, 3))
    found = timing.time_step(job, recipe.resolved)
    assert found.step_seconds == pytest.approx(1.0 + 2 * 0.04 + 3 * 0.02)
    assert found.recompute_factor == pytest.approx(1.14)


def test_a_machine_that_becomes_slower_does_so_for_all(monkeypatch):
    slower = iter((1.0, 1.1, 1.2, 1.3))
    monkeypatch.setattr(
        timing,
        "_steps",
        lambda job, recipe, layers, amount, rows: [Step((0.3 + 0.1 * layers) * next(slower), 64, 0, 0, 0)],
    )
    recipe = get_recipe("lora", **QUICK)
    assert timing.time_step(job_of(recipe), recipe.resolved).step_seconds == pytest.approx(1.15)


def test_layers_that_are_timed_are_computed_again(monkeypatch):
    asked = []
    monkeypatch.setattr(timing.recompute, "install", lambda model, amount: asked.append(amount))
    recipe = get_recipe("lora", **QUICK)
    timing.time_step(replace(job_of(recipe), recompute=Recompute(0, 2)), recipe.resolved)
    assert asked[:3] == [Recompute(), Recompute(), Recompute(0, 4)] and asked[3:] == asked[2::-1]


@pytest.mark.parametrize(
    ("a_step", "warmup", "steps"),
    [(0.1, 20, 30), (1.5, 2, 3), (60.0, 2, 3)],
    ids=["many that are short", "two seconds, and three", "few that are long"],
)
def test_steps_are_timed_for_long_enough(a_step, warmup, steps, monkeypatch):
    monkeypatch.setattr(timing, "WARMUP", (2, 2.0))
    monkeypatch.setattr(timing, "STEPS", (3, 3.0))
    state, control, now = TrainerState(), TrainerControl(), [5.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    enough = timing._Enough()
    enough.on_train_begin(None, state, control)
    while not control.should_training_stop:
        state.global_step += 1
        now[0] += a_step + 1e-9
        enough.on_step_end(None, state, control)
    assert (enough.warmup, state.global_step) == (warmup, warmup + steps)


@pytest.mark.parametrize(
    ("kinds", "period"), [("aaaa", 1), ("aabaab", 3), ("aabaa", 3), ("", 1), ("abab", 2), ("aaab", 1)]
)
def test_layers_take_turns(kinds, period):
    assert timing.layer_period({"layer_types": list(kinds)}) == period


@pytest.mark.parametrize("name", ["lora", "full"])
def test_what_is_timed_is_the_model_that_was_planned(name):
    recipe = get_recipe(name, **QUICK)
    found = timing.time_step(job_of(recipe), recipe.resolved)
    assert found.layers == (1, 4) and 0 < found.tokens_per_second < 1e6
    model = timing._model(job_of(recipe), recipe.resolved, 2, "CAUSAL_LM")
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert any(".layers.1." in name for name in trained) and not any(".layers.2." in name for name in trained)
    assert all(("lora_" in one) == (name == "lora") for one in trained)


@pytest.mark.parametrize("name", ["lora", "full"])
def test_what_is_timed_takes_the_paths_that_a_run_takes(name, monkeypatch, tmp_path):
    taken = []
    monkeypatch.setattr(timing, "speed_up", lambda *asked, **named: taken.append(speed_up(*asked, **named).paths))
    recipe = get_recipe(name, **QUICK)
    timing.time_step(job_of(recipe), recipe.resolved)
    config = CONFIG | {"num_hidden_layers": 1}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(MODEL_DIR).save_pretrained(tmp_path / "model")
    write_jsonl(tmp_path / "rows.jsonl", [{"prompt": f"What is {n}?", "completion": "A number."} for n in range(8)])
    run = get_recipe(
        name, model=str(tmp_path / "model"), dataset=str(tmp_path / "rows.jsonl"), max_steps=1, certify="off", **QUICK
    )
    run.train(output_dir=tmp_path / "out")
    assert taken == [json.loads((tmp_path / "out" / "result.json").read_text())["speed"]] * 4


def test_the_rows_are_like_the_data():
    documents = Documents(lengths=(10, 20, 30) * 40, supervised_tokens=600, row_length=60, row_count=40)
    recipe = get_recipe("lora", **QUICK)
    job = job_of(recipe, documents=documents)
    rows = timing._rows(job, documents)
    assert {len(row["input_ids"]) for row in rows} == {10, 20, 30}
    told = sum(label != -100 for row in rows for label in row["labels"])
    assert told / sum(len(row["labels"]) for row in rows) == pytest.approx(documents.supervised, abs=0.02)
    # Enough for eight steps of one row of three documents, and a quarter more.
    assert len(rows) == 30
    assert all(len(row["input_ids"]) == 60 for row in timing._rows(job, None))


def test_a_device_that_is_not_here_cannot_be_timed():
    with pytest.raises(UserError, match=r"what can be timed here is .* the plan is for H100"):
        get_recipe("lora", device="H100").plan(measure=True)


@pytest.mark.slow
def test_a_plan_tells_what_was_timed_and_the_hours_of_the_data(command, tmp_path):
    model, rows = tmp_path / "model", tmp_path / "rows"
    for folder in (model, rows):
        folder.mkdir()
    (model / "config.json").write_text(json.dumps(CONFIG), "utf-8")
    write_jsonl(rows / "train.jsonl", [{"text": f"{n} and {n + 1} make {2 * n + 1}."} for n in range(50)])
    flags = [word for key, value in QUICK.items() for word in (f"--{key}", value)]
    from hf_peft_recipes.embedded import MODEL_DIR

    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (MODEL_DIR / file).is_file():
            (model / file).write_bytes((MODEL_DIR / file).read_bytes())
    finished = command("plan", "lora", "--model", model, "--dataset", rows, "--measure", "--data", "--json", *flags)
    assert finished.returncode == 0, finished.stderr
    plan = json.loads(finished.stdout)
    assert any("timed here, on 1 and 4 layers" in told for told in plan["assumptions"])
    assert plan["hours"] == pytest.approx(
        plan["data"]["epochs"] * plan["data"]["tokens"] / plan["tokens_per_second"] / 3600, rel=1e-3
    )
    assert plan["bound"] in ("arithmetic", "memory")
