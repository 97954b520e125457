"""Races: budgets as they are written and spent, who beats whom, and a race that goes on where it was cut off."""

import json

import jsonschema
import pytest
from conftest import FAST

from hf_peft_recipes import UserError, get_recipe
from hf_peft_recipes.bench.race import Entrant, make_entrants, run_race, stand
from hf_peft_recipes.bench.suite import read_lines
from hf_peft_recipes.budget import Budget, parse_budget
from hf_peft_recipes.fresh_process import Finished
from hf_peft_recipes.report.race import race_table
from hf_peft_recipes.results import read_schema


@pytest.mark.parametrize(
    ("time", "tokens", "budget"),
    [
        ("90s", None, Budget(seconds=90)),
        ("1.5h", None, Budget(seconds=5400)),
        ("10m", None, Budget(seconds=600)),
        (None, "500k", Budget(tokens=500_000)),
        (None, "2M", Budget(tokens=2_000_000)),
        (None, "1_000", Budget(tokens=1000)),
    ],
)
def test_budgets_as_they_are_written(time, tokens, budget):
    assert parse_budget(time, tokens) == budget


@pytest.mark.parametrize(
    ("time", "tokens", "said"),
    [
        (None, None, "one of --budget 10m"),
        ("10m", "2M", "one of --budget 10m"),
        ("10", None, "--budget 10: 90s, 10m or 1.5h is wanted"),
        ("0s", None, "--budget 0s"),
        ("-5s", None, "--budget -5s"),
        (None, "2T", "--tokens 2T: 500k, 2M or a number is wanted"),
    ],
)
def test_a_budget_that_cannot_be_read(time, tokens, said):
    with pytest.raises(UserError, match=said):
        parse_budget(time, tokens)


@pytest.mark.parametrize(
    ("recipes", "overrides", "said"),
    [
        (["lora", "lorra"], {}, "unknown recipe 'lorra'; did you mean 'lora'"),
        (["lora", "lora"], {}, "'lora' stands twice"),
        (["lora"], {"max_steps": "8"}, "--max_steps beside a budget"),
        (["lora"], {"lerning_rate": "1"}, "unknown option --lerning_rate"),
        ([], {}, "no recipe to race"),
    ],
)
def test_mistakes_end_a_race_before_its_first_run(recipes, overrides, said):
    with pytest.raises(UserError, match=said):
        make_entrants(recipes, Budget(tokens=1), 1, overrides)


def test_all_recipes_run_with_one_seed_before_the_next():
    entrants = make_entrants(["lora", "full"], Budget(seconds=9), 2)
    assert [entrant.name for entrant in entrants] == ["lora-42", "full-42", "lora-43", "full-43"]
    assert entrants[2].options() == {"certify": "off", "seed": 43, "budget_seconds": 9}


@pytest.mark.parametrize("budget", [Budget(tokens=1500), Budget(seconds=0.5)])
def test_a_run_ends_with_its_budget_and_its_schedule_with_it(tmp_path, rows, budget):
    recipe = get_recipe("lora", dataset=rows, learning_rate=1e-3, max_length=64, gradient_accumulation_steps=1, **FAST)
    record = recipe.train(tmp_path / "out", budget=budget, progress=False).record
    jsonschema.validate(record, read_schema())
    spent, fed = record["budget"], record["measured"]["series"]["tokens"]
    assert spent["spent_tokens"] == sum(fed)
    if budget.tokens:
        assert sum(fed[:-1]) < budget.tokens <= sum(fed)
    else:
        assert spent["spent_seconds"] >= budget.seconds
    rates = [point["learning_rate"] for point in record["loss_curve"]]
    assert max(rates) <= 1e-3
    assert record["measured"]["steps"] < 5 or rates[-1] < 5e-4


def record(quality, memory=1.0, seconds=1.0, tokens=10):
    """Return the record of a run, as far as a race looks at it."""
    return {
        "status": "done",
        "measured": {
            "peak_memory_bytes": int(memory * 2**30), "train_seconds": seconds, "total_seconds": 9.0, "steps": 3,
            "tokens_per_second": 5.0,
        },
        "budget": {"seconds": None, "tokens": tokens, "spent_seconds": seconds, "spent_tokens": tokens},
        "parameters": {"trainable": 7, "total": 70},
        "metrics": {"task": "classification", "before": {}, "after": {"loss": 1 - quality, "accuracy": quality}},
    }  # fmt: skip


def executor(results, ran):
    """Return what takes the place of a run: gives a recipe's record, or the words that it failed with."""

    def execute(recipe, options, folder):
        ran.append((recipe, options["seed"]))
        (folder / "out").mkdir()
        found = results[recipe](options["seed"]) if callable(results[recipe]) else results[recipe]
        return (
            (Finished([], 2, "", f"error: {found}"), None)
            if isinstance(found, str)
            else (Finished([], 0, "", ""), found)
        )

    return execute


def entrants(*names, seeds=(1, 2), **budget):
    return [Entrant(name, seed, **(budget or {"tokens": 10})) for seed in seeds for name in names]


def test_who_is_beaten_and_by_what(tmp_path):
    results = {
        "best": lambda seed: record(0.9 + seed / 100, 2.0, 2.0),
        "small": record(0.8, 1.0, 2.0),
        "quick": record(0.7, 2.0, 1.0),
        "beaten": record(0.8, 1.5, 2.0),
        "broken": "no such module",
    }
    standings = run_race(entrants(*results), tmp_path, execute=executor(results, []))
    rows = {row["recipe"]: row for row in standings["recipes"]}
    assert standings["metric"] == "accuracy"
    assert [name for name, row in rows.items() if row["pareto"]] == ["best", "small", "quick"]
    assert rows["best"]["quality"] == pytest.approx(
        {"mean": 0.915, "lowest": 0.91, "highest": 0.92, "deviation": 0.01 / 2**0.5}
    )
    assert rows["broken"]["runs"] == 0
    assert rows["broken"]["errors"] == ["failed: no such module"] * 2
    assert (tmp_path / "race.png").read_bytes().startswith(b"\x89PNG")
    assert race_table(standings).row_count == 5
    # After equal time, seconds tell nothing.
    lines = [{**line, "cell": {**line["cell"], "seconds": 1.0}} for line in read_lines(tmp_path / "race.jsonl")]
    assert [row["recipe"] for row in stand(lines)["recipes"] if row["pareto"]] == ["best", "small"]
    assert stand(lines, "loss")["lower_is_better"]
    assert [row["recipe"] for row in stand(lines, "loss")["recipes"] if row["pareto"]] == ["best", "small"]


def test_a_race_that_is_cut_off_goes_on(tmp_path):
    def interrupted(seed):
        raise KeyboardInterrupt

    ran, results = [], {"a": record(0.5), "b": lambda seed: interrupted(seed) if seed == 2 else record(0.6)}
    with pytest.raises(KeyboardInterrupt):
        run_race(entrants("a", "b"), tmp_path, execute=executor(results, ran))
    assert (tmp_path / "race.png").is_file()
    (tmp_path / ".running-left" / "out").mkdir(parents=True)
    results["b"] = "failed now"
    run_race(entrants("a", "b"), tmp_path, execute=executor(results, ran))
    results["b"] = record(0.6)
    standings = run_race(entrants("a", "b"), tmp_path, execute=executor(results, ran))
    # What is there is not run again, what failed is.
    assert ran == [("a", 1), ("b", 1), ("a", 2), ("b", 2), ("b", 2), ("b", 2)]
    assert [row["runs"] for row in standings["recipes"]] == [2, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["race.jsonl", "race.png"]


def test_an_unknown_metric_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such metric; did you mean 'accuracy'"):
        run_race(entrants("a"), tmp_path / "out", "acuracy")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_real_race(tmp_path, command):
    words = ["race", "ln_tuning", "--tokens", "1500", "--seeds", "1", "--output_dir", tmp_path / "out", "--json"]
    words += ["--evaluation.max_rows", "8", "--data.validation_rows", "8"]
    finished = command(*words)
    assert finished.returncode == 0, finished.stderr
    standings = json.loads(finished.stdout)
    (row,) = standings["recipes"]
    assert (row["runs"], row["pareto"], standings["budget"]) == (1, True, {"seconds": None, "tokens": 1500})
    assert row["tokens"]["mean"] >= 1500
    again = command(*words)
    assert json.loads(again.stdout) == standings
    assert "(run before)" in again.stderr
