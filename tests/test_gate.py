"""Policies, questions, and the verdict on a run that is broken on purpose."""

import json
import re
from collections import Counter

import pytest
from conftest import FAST, ROOT, write_jsonl

from hf_peft_recipes import get_recipe
from hf_peft_recipes.api import RunResult
from hf_peft_recipes.errors import GateError, UserError
from hf_peft_recipes.gate.policy import Policy, Regression, read_policy
from hf_peft_recipes.gate.questions import EXTRACTIONS, Question, is_right, read_questions
from hf_peft_recipes.gate.verdicts import require
from hf_peft_recipes.spec import Override

GOOD = "metric: accuracy\nrises_by: 5%\nregression: {falls_at_most: 0.02}\n"


def policy(folder, text):
    path = folder / "policy.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_policy_is_read(tmp_path):
    assert read_policy(policy(tmp_path, GOOD)) == Policy("accuracy", 0.05, Regression(0.02))
    own = "metric: loss\nrises_by: 0\nregression: {falls_at_most: 0, dataset: q.jsonl}\nconfidence: 90%\nmin_rows: 5\n"
    assert read_policy(policy(tmp_path, own)) == Policy("loss", 0.0, Regression(0.0, str(tmp_path / "q.jsonl")), 0.9, 5)
    assert read_policy(policy(tmp_path, "metric: loss\nrises_by: 0\nregression: null\n")).regression is None


def test_the_policy_of_the_readme(tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    text = next(block for block in re.findall(r"```yaml\n(.*?)```", readme, re.S) if "rises_by" in block)
    assert read_policy(policy(tmp_path, text)) == Policy("accuracy", 0.05, Regression(0.1))
    assert f"{len(read_questions(None))} short questions" in readme


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("rises_by: 1%\nregression: null", "policy.yaml: metric is missing"),
        (GOOD + "confidenc: 0.9", "unknown key 'confidenc'; did you mean 'confidence'?"),
        (
            GOOD.replace("falls_at_most", "fall_at_most"),
            "unknown key 'regression.fall_at_most'; did you mean 'falls_at_most'?",
        ),
        (GOOD.replace("accuracy", "acuracy"), "unknown metric 'acuracy'; did you mean 'accuracy' or"),
        (GOOD.replace("5%", "much"), "rises_by = 'much': a number, or a share such as 2%, is wanted"),
        (GOOD.replace("0.02", "-1"), "falls_at_most is -1.0; 0 or more is wanted"),
        (GOOD + "confidence: 95", "confidence is 95.0; a share between 0 and 1"),
        (GOOD + "min_rows: 0", "min_rows = 0: a whole number above 0"),
        ("metric: loss\nrises_by: 0\nregression: 5%", "regression is a mapping such as"),
        (GOOD + "metric: loss", "key 'metric' stands twice"),
        ("[1]", "a policy is a mapping of keys to values"),
    ],
)
def test_a_mistake_in_a_policy_is_told(tmp_path, text, told):
    with pytest.raises(UserError) as caught:
        read_policy(policy(tmp_path, text))
    assert told in str(caught.value)


def test_there_is_no_policy(tmp_path):
    policy(tmp_path, GOOD)
    with pytest.raises(UserError, match=r"no such file; did you mean 'policy.yaml'\?"):
        read_policy(tmp_path / "polcy.yaml")


def test_the_bundled_questions():
    questions = read_questions(None)
    assert len({question.prompt for question in questions}) == len(questions) >= 50
    assert {question.scorer for question in questions} == set(EXTRACTIONS)
    for question in questions:
        assert all(is_right(question, right) for right in question.right)
        assert not is_right(question, "")
        wrong = [choice for choice in question.choices if choice not in question.right]
        assert not any(is_right(question, choice) for choice in wrong)
    # The answers to a subject with choices are balanced: none is right for most of it.
    for subject in ("judgement", "reviews"):
        answers = Counter(question.completion for question in questions if question.subject == subject)
        assert len(set(answers.values())) == 1


@pytest.mark.parametrize(
    ("question", "answer", "right"),
    [
        (Question("", "Paris"), "The capital of France is Paris.", 1.0),
        (Question("", "Paris"), "It is Parisian", 0.0),
        (Question("", "no", choices=("yes", "no")), "No, that cannot be; yes?", 1.0),
        (Question("", "no", choices=("yes", "no")), "I do not know", 0.0),
        (Question("", "happy", choices=("happy", "unhappy")), "Unhappy.", 0.0),
        (Question("", "New York City", choices=("New York", "New York City")), "new york city it is", 1.0),
        (Question("", "12", "numeric"), "7 + 5 = 12.", 1.0),
        (Question("", "BLUE", "exact"), '\n"BLUE"\nThat is it.', 1.0),
        (Question("", "BLUE", "exact"), "blue", 0.0),
        (Question("", "UK", alternatives=("Britain",)), "in Britain", 1.0),
    ],
)
def test_answers_are_found_in_what_is_written(question, answer, right):
    assert is_right(question, answer) == right


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": "x"}, "q.jsonl:1: completion is missing"),
        ({"prompt": "x", "completion": 5}, "completion is 5; a text is wanted"),
        ({"prompt": "x", "completion": "y", "scorr": "exact"}, "unknown key 'scorr'; did you mean 'scorer'?"),
        ({"prompt": "x", "completion": "y", "scorer": "exat"}, "unknown scorer 'exat'; did you mean 'exact'?"),
        ({"prompt": "x", "completion": "y", "choices": ["a"]}, "not all among the choices"),
        (["x"], "a question is a mapping"),
    ],
)
def test_a_row_that_is_no_question(tmp_path, row, told):
    with pytest.raises(UserError, match=re.escape(told)):
        read_questions(str(write_jsonl(tmp_path / "q.jsonl", [row])))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_questions(str(tmp_path / "none.jsonl"))


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """Return a run at a learning rate that leaves nothing of the base."""
    out = tmp_path_factory.mktemp("gate") / "out"
    return get_recipe("lora", max_steps=6, learning_rate=0.1, warmup_steps=0, **FAST).train(out)


ROWS = [Override("evaluation.max_rows", 30, "a test")]


@pytest.mark.slow
def test_what_the_base_knew_must_not_be_lost(broken, tmp_path):
    path = policy(tmp_path, "metric: loss\nrises_by: -1000\nregression: {falls_at_most: 2%, max_new_tokens: 4}\n")
    verdict = broken.gate(path, overrides=ROWS)
    task, regression = verdict["conditions"]
    assert verdict["verdict"] == "do not ship"
    assert task["ok"] and not regression["ok"]
    assert regression["subjects"]["reviews"] == {"rows": 16, "base": 16, "trained": 0}
    assert regression["lost"] == 16 and regression["lost_answers"][0]["base"] in ("happy", "delighted")
    low, high = regression["interval"]
    assert low < regression["difference"] < high < 0
    with pytest.raises(GateError, match=r"do not ship: right answers changed by -0\.2759"):
        require(verdict)


@pytest.mark.slow
def test_the_task_must_rise(broken, tmp_path, command):
    path = policy(tmp_path, "metric: loss\nrises_by: 0\nregression: null\n")
    finished = command("evaluate", broken.folder, "--gate", path, "--json", "--evaluation.max_rows", 30)
    assert finished.returncode == 8
    assert re.fullmatch(r"error: do not ship: loss fell by -\d.*, where more than 0 is asked for\n", finished.stderr)
    told = json.loads(finished.stdout)
    assert told["verdict"] == "do not ship"
    assert told["metrics"]["rows"] == 30


@pytest.mark.slow
def test_questions_that_the_base_cannot_answer_show_nothing(broken, tmp_path):
    write_jsonl(tmp_path / "mine.jsonl", [{"prompt": f"Say x{n}.", "completion": f"x{n}"} for n in range(30)])
    text = "metric: loss\nrises_by: -1000\nregression: {falls_at_most: 1, dataset: mine.jsonl, max_new_tokens: 2}\n"
    verdict = broken.gate(policy(tmp_path, text), overrides=ROWS)
    assert verdict["verdict"] == "do not ship"
    assert "the base answers no question" in verdict["conditions"][1]["why"]


@pytest.mark.slow
def test_what_cannot_be_decided_is_refused(broken, tmp_path):
    with pytest.raises(UserError, match="16 held-out rows are too few to decide by"):
        broken.gate(policy(tmp_path, GOOD))
    with pytest.raises(UserError, match="'rouge1' is none that base and run are both measured by"):
        broken.gate(policy(tmp_path, GOOD.replace("accuracy", "rouge1")), overrides=ROWS)
    write_jsonl(tmp_path / "few.jsonl", [{"prompt": "x", "completion": "y"}])
    few = GOOD.replace("0.02", "0.02, dataset: few.jsonl")
    with pytest.raises(UserError, match="1 questions are too few"):
        broken.gate(policy(tmp_path, few), overrides=ROWS)


@pytest.mark.slow
def test_a_run_that_does_what_is_asked_ships(broken, tmp_path):
    path = policy(tmp_path, "metric: loss\nrises_by: -1000\nregression: null\n")
    verdict = RunResult.read(broken.folder).gate(path, overrides=ROWS)
    assert verdict["verdict"] == "ship"
    require(verdict)
