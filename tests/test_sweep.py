"""Sweeps: the space as it is written, trials that fail or are given up, and a study that survives being killed."""

import fcntl
import json
import os
import signal
import subprocess
import time
from types import SimpleNamespace

import pytest
import zygote
from conftest import FAST, ROOT

from hf_peft_recipes import PreemptedError, RunResult, UserError, get_recipe
from hf_peft_recipes.fresh_process import Finished
from hf_peft_recipes.sweep.plan import make_sweep, open_folder
from hf_peft_recipes.sweep.reporting import PrunedError, Reporter
from hf_peft_recipes.sweep.space import Dimension, parse_space
from hf_peft_recipes.sweep.trials import run_trials

SMALL = {**FAST, "eval_strategy": "steps", "max_length": 128}


def test_a_space_as_it_is_written():
    found = parse_space("learning_rate=loguniform(1e-5,1e-3), r=8|16|64,lora-dropout=uniform(0,0.2),seed=int(1,9)")
    assert found == (
        Dimension("learning_rate", "loguniform", 1e-5, 1e-3),
        Dimension("r", "choice", choices=("8", "16", "64")),
        Dimension("lora_dropout", "uniform", 0.0, 0.2),
        Dimension("seed", "int", 1, 9),
    )
    assert parse_space([str(dimension) for dimension in found]) == found
    assert parse_space({"r": [8, 16], "packing": [True, False], "max_length": [None, 64]}) == parse_space(
        "r=8|16,packing=true|false,max_length=null|64"
    )
    (modules,) = parse_space("target_modules=[q_proj, v_proj]|all-linear")
    assert [modules.value(word) for word in modules.choices] == [["q_proj", "v_proj"], "all-linear"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "nothing to search"),
        ("r", "'r': key=loguniform"),
        ("r=8|16,r=32|64", "r stands twice"),
        ("r=8|16|8", "8 stands twice"),
        ("r=8|", "a choice is missing"),
        ("r=8", "one value is no choice; use --r"),
        ("learning_rate=logunifrom(1e-5,1e-3)", "unknown range 'logunifrom'; did you mean 'loguniform'"),
        ("learning_rate=loguniform(0,1e-3)", "bounds above 0"),
        ("learning_rate=loguniform(1e-3,1e-5)", "the first bound is to be below"),
        ("learning_rate=uniform(1,1)", "the first bound is to be below"),
        ("learning_rate=uniform(1,x)", "two numbers are wanted"),
        ("learning_rate=uniform(1)", "two numbers are wanted"),
        ("learning_rate=uniform(1,inf)", "two finite numbers"),
        ("r=int(1.5,8)", "two whole numbers"),
    ],
)
def test_a_space_that_cannot_be_searched(text, said):
    with pytest.raises(UserError) as caught:
        parse_space(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "arguments", "said"),
    [
        ({}, {"space": "lerning_rate=loguniform(1e-5,1e-3)"}, "unknown option --space lerning_rate; did you mean"),
        ({}, {"space": "r=uniform(1,8)"}, "adapter.r = 1.0 .*a whole number is wanted"),
        # The second choice is as wrong as a first one would be.
        ({}, {"space": "packing=true|maybe"}, "training.packing = 'maybe' .*true or false"),
        ({}, {"space": "learning_rate=uniform(0,1),training.learning_rate=uniform(0,1)"}, "are the same field"),
        ({"r": 8}, {"space": "r=8|16"}, "adapter.r is given .*and searched"),
        ({}, {"space": "r=8|16", "metric": "acuracy"}, "no such metric; did you mean 'accuracy'"),
        ({"eval_strategy": "no"}, {"space": "r=8|16"}, "use --eval_strategy steps"),
        ({"data.validation_size": 0.0}, {"space": "r=8|16"}, "there are no held-out rows"),
        ({"dataset": "nowhere.jsonl"}, {"space": "r=8|16"}, "nowhere.jsonl"),
        ({"model": "/nowhere"}, {"space": "r=8|16"}, "no such folder"),
        ({"model": object()}, {"space": "r=8|16"}, "model is an object here"),
        ({}, {"space": "r=8|16", "trials": 0}, "--trials 0"),
    ],
)
def test_mistakes_end_a_sweep_before_its_first_trial(tmp_path, jsonl, overrides, arguments, said):
    recipe = get_recipe("lora", **{"dataset": str(jsonl), **overrides})
    with pytest.raises(UserError, match=said) as caught:
        recipe.sweep(**arguments, output_dir=tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def sweep(tmp_path):
    """Return a function that runs a sweep whose trials are a function of their values, and take no time."""

    def decide(settings, origin):
        return get_recipe("lora", **settings).resolved

    def run(trial, number, metric="eval_loss", told=lambda *_: None):
        plan = make_sweep(decide, parse_space("learning_rate=loguniform(1e-5,1e-3),r=8|16"), metric)
        open_folder(tmp_path, plan)

        def execute(job):
            reporter = Reporter(job.study, job.number)
            curve = []
            try:
                for step, loss in enumerate(trial(job), 1):
                    curve.append({"step": step, "eval_loss": loss})
                    reporter.on_evaluate(None, SimpleNamespace(global_step=step, max_steps=2), None, curve[-1])
            except (PrunedError, MemoryError) as error:
                return Finished([], 1, "", f"error: {type(error).__name__}: {error}"), None
            except UserError as error:
                return Finished([], 2, "", f"error: {error}"), None
            return Finished([], 0, "", ""), {
                "loss_curve": curve,
                "metrics": {"after": {"accuracy": 1 - curve[-1]["eval_loss"]}},
            }

        return run_trials(tmp_path, plan, number, decide, execute, told)

    return run


def steady(job):
    """Return losses that are lower the nearer the rate is to 1e-4."""
    rate = job.settings["learning_rate"]
    return [0.1 + max(rate / 1e-4, 1e-4 / rate) / 100] * 2


@pytest.mark.parametrize("metric", ["eval_loss", "accuracy"])
def test_the_best_is_found_and_what_is_behind_is_given_up(sweep, tmp_path, metric):
    summary = sweep(steady, 9, metric)
    statuses = [trial["status"] for trial in summary["trials"]]
    assert set(statuses) == {"done", "pruned"}
    # The first five have nothing to be behind of.
    assert statuses[:5] == ["done"] * 5
    pruned = [trial for trial in summary["trials"] if trial["status"] == "pruned"]
    best = min(steady(SimpleNamespace(settings=trial["params"]))[0] for trial in summary["trials"])
    found = summary["trials"][summary["best"]]
    assert found["evaluations"][-1] == best
    assert found["value"] == pytest.approx(best if metric == "eval_loss" else 1 - best)
    assert all(len(trial["evaluations"]) == 1 and trial["evaluations"][0] > best for trial in pruned)
    assert json.loads((tmp_path / "trials.json").read_text()) == summary
    assert (tmp_path / "trials.png").read_bytes().startswith(b"\x89PNG")
    kept = get_recipe(str(tmp_path / "best.yaml")).resolved
    assert kept.value("training.learning_rate") == found["params"]["learning_rate"]
    assert kept.value("adapter.r") == int(found["params"]["r"])
    assert kept.value("certify") == "auto"
    assert summary["importances"]["learning_rate"] > summary["importances"]["r"]


@pytest.mark.parametrize("how", [KeyboardInterrupt, PreemptedError])
def test_a_sweep_that_is_interrupted_asks_for_the_same_values_as_one_that_is_not(sweep, tmp_path, how):
    begun = []

    def interrupted(job):
        begun.append(job.settings)
        if len(begun) == 2:
            raise how("asked to end")
        return steady(job)

    with pytest.raises(how):
        sweep(interrupted, 4)
    assert [trial["status"] for trial in json.loads((tmp_path / "trials.json").read_text())["trials"]] == [
        "done",
        "cut off",
    ]
    assert (tmp_path / "trials.png").is_file()
    summary = sweep(steady, 4)
    cut, again = summary["trials"][1:3]
    assert (cut["status"], again["status"], again["again"]) == ("cut off", "done", 1)
    assert again["params"] == cut["params"]
    # That one beside the four that were asked for.
    assert len(summary["trials"]) == 5
    assert sweep(steady, 4)["trials"] == summary["trials"]


def test_trials_that_fail_are_told_and_passed_over(sweep):
    def half(job):
        if job.settings["r"] == 16:
            raise MemoryError("Cannot allocate memory")
        return steady(job)

    summary = sweep(half, 6)
    failed = [trial for trial in summary["trials"] if trial["status"] == "failed"]
    assert {trial["params"]["r"] for trial in failed} == {"16"}
    assert all(trial["starved"] and "Cannot allocate memory" in trial["error"] for trial in failed)
    assert {trial["params"]["r"] for trial in summary["trials"] if trial["status"] == "done"} == {"8"}


def test_a_mistake_that_every_trial_would_make_ends_it(sweep):
    with pytest.raises(UserError, match=r"trial 0 \(learning_rate .*\): no such thing"):
        sweep(lambda job: (_ for _ in ()).throw(UserError("no such thing")), 5)


def test_a_metric_that_runs_do_not_end_with_ends_it(sweep):
    with pytest.raises(UserError, match="--metric macro_f1: this run gives accuracy, eval_loss"):
        sweep(steady, 5, "macro_f1")


def test_another_sweep_in_the_folder_is_refused(sweep, tmp_path):
    sweep(steady, 1)
    with pytest.raises(UserError, match=r"holds another sweep \(its metric\)"):
        sweep(steady, 1, "loss")
    with (tmp_path / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"a run is running in .*another process"):
            sweep(steady, 2)


def test_real_trials_in_this_process(tmp_path, rows):
    """Rows as objects go to no other process. A rank of a thousand million has no room anywhere."""
    recipe = get_recipe("lora", dataset=rows, max_steps=2, **SMALL)
    result = recipe.sweep({"r": [2, 1_000_000_000]}, trials=3, output_dir=tmp_path / "out", progress=False)
    by_rank = {trial["params"]["r"]: trial for trial in result.trials}
    assert by_rank["1000000000"]["starved"]
    assert by_rank["2"]["status"] == "done"
    record = RunResult.read(result.best["folder"]).record
    assert result.best["value"] == record["loss_curve"][-1]["eval_loss"]
    assert "certificate" not in record
    assert result.best["params"] == {"r": "2"}
    assert result.recipe().resolved.value("adapter.r") == 2
    assert "memory" in str(result)


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on_and_its_best_repeats_the_trial(tmp_path, command):
    out = tmp_path / "out"
    words = ["sweep", "lora", "--space", "learning_rate=loguniform(1e-4,1e-2)", "--output_dir", out, "--max_steps", "3"]
    words += ["--trials", "1", "--max_length", "128", "--evaluation.max_rows", "8", "--data.validation_rows", "8"]
    # The trial is to end with this one, which forks of the tests' own do otherwise.
    process = subprocess.Popen(
        [zygote.PYTHON, "-m", "hf_peft_recipes", *map(str, words)], cwd=ROOT,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    first = out / "trial-000" / "result.json"
    while process.poll() is None and not first.is_file():
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = command(*words, "--json")
    assert finished.returncode == 0, finished.stderr
    summary = json.loads(finished.stdout)
    assert [trial["status"] for trial in summary["trials"]] == ["cut off", "done"]
    assert summary["trials"][0]["params"] == summary["trials"][1]["params"]
    # The run that nobody waited for has ended by itself.
    assert json.loads(first.read_text())["status"] == "preempted"
    trained = get_recipe(str(out / "best.yaml"), certify="off").train(tmp_path / "best", progress=False)
    record = json.loads((out / "trial-001" / "result.json").read_text())
    assert trained.record["loss_curve"] == record["loss_curve"]
    assert trained.record["metrics"]["split"] == "test"


def test_the_command_tells_mistakes_in_one_line(command):
    for words, said in {
        (): "--space is missing",
        ("--space", "r=8"): "one value is no choice",
        ("--space", "r=8|16", "--metric", "los"): "no such metric; did you mean",
    }.items():
        finished = command("sweep", "lora", *words)
        assert finished.returncode == 2
        assert said in finished.stderr.splitlines()[-1]
        assert "Traceback" not in finished.stderr
