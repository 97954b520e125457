"""`evaluate --tasks`: without lm-evaluation-harness one line; with it, a task of one's own on the demo."""

from importlib.util import find_spec

import pytest
from conftest import FAST, write_jsonl

from hf_peft_recipes import get_recipe
from hf_peft_recipes.errors import UserError

TASK = """
task: local_reviews
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{review}}}}"
doc_to_target: answer
doc_to_choice: [negative, positive]
target_delimiter: ""
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1}}
"""
REVIEWS = ["The soup was {} and the waiter was {}.", "What a {} film. The ending was {}."]


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="lm-evaluation-harness is installed")
def test_without_the_harness_one_line_says_how_to_get_it(command, tmp_path):
    (tmp_path / "result.json").write_text('{"schema_version": 1}')
    finished = command("evaluate", tmp_path, "--tasks", "hellaswag,arc_easy")
    assert finished.returncode == 2
    assert (
        finished.stderr == "error: --tasks needs lm-evaluation-harness, which is not installed: pip install lm-eval\n"
    )


def test_tasks_and_gate_go_apart(command, tmp_path):
    (tmp_path / "result.json").write_text('{"schema_version": 1}')
    for words in (["--tasks", "x"], ["--no-base"]):
        finished = command("evaluate", tmp_path, "--gate", "policy.yaml", *words)
        assert finished.returncode == 2
        assert "it goes with neither --tasks nor --no-base" in finished.stderr


@pytest.mark.slow
def test_a_task_of_ones_own(tmp_path):
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is an extra")
    run = get_recipe("lora", max_steps=2, **FAST).train(tmp_path / "out")
    rows = [
        {"review": f"Review: {form.format(*words)}\nIs this review positive or negative?", "answer": label}
        for form in REVIEWS
        for label, words in enumerate([("awful", "poor"), ("great", "lovely")])
    ]
    file = write_jsonl(tmp_path / "reviews.jsonl", rows)
    (tmp_path / "local_reviews.yaml").write_text(TASK.format(file=file))
    options = {"include_path": str(tmp_path), "apply_chat_template": True, "batch_size": 2}
    found = run.evaluate_tasks(["local_reviews"], **options)
    # The base takes every review for a negative one.
    assert found["before"]["local_reviews"]["acc"]["value"] == 0.5
    assert set(found["after"]["local_reviews"]["acc"]) == {"value", "standard_error"}
    assert found["samples"] == {"local_reviews": 4}
    with pytest.raises(UserError, match=r"knows no task 'local_review'; did you mean 'local_reviews'\?"):
        run.evaluate_tasks(["local_review"], **options)
    with pytest.raises(UserError, match=r"--limt is no option .* did you mean 'limit'"):
        run.evaluate_tasks(["local_reviews"], limt=3)
