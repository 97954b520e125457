"""Rounds of feedback: what each step does, and whole runs, from the first answer to the model that is kept."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import jsonschema
import pytest
from conftest import ROOT, write_jsonl
from loopback_judge import Reply, serving

from hf_peft_recipes import UserError, get_recipe, list_recipes
from hf_peft_recipes.api import resolve_recipe
from hf_peft_recipes.api.recipes import Recipe
from hf_peft_recipes.budget import make_budget
from hf_peft_recipes.card import Publication, make_card
from hf_peft_recipes.data import Example
from hf_peft_recipes.device import detect_device
from hf_peft_recipes.errors import NotTrainedError, SourceError, WaitingError
from hf_peft_recipes.feedback.asking import Asked, Feedback
from hf_peft_recipes.feedback.journal import Journal
from hf_peft_recipes.feedback.record import FeedbackRecord, Origin, as_turns
from hf_peft_recipes.feedback.samples import Sample, read_samples
from hf_peft_recipes.fresh_process import Finished
from hf_peft_recipes.hub.bases import Base
from hf_peft_recipes.hub.contents import published_recipe, published_record
from hf_peft_recipes.results import read_result, read_schema
from hf_peft_recipes.rounds.drawing import Tokens, pick_rows, refine_turns
from hf_peft_recipes.rounds.folder import RoundFolder, journal_path, read_json
from hf_peft_recipes.rounds.judging import judge, known_samples
from hf_peft_recipes.rounds.keeping import decide
from hf_peft_recipes.rounds.loop import still_wrong
from hf_peft_recipes.rounds.settings import read_rounds
from hf_peft_recipes.spec import Override

RECIPES = ("ilf", "rft", "star", "self_refine_sft", "feedback_dpo", "feedback_kto")
BASE = Base("me/base", "0" * 40, "mit", gated=False)
SMALL = {
    "feedback.rounds": 1, "feedback.prompts": 8, "max_steps": 3, "evaluation.max_rows": 16, "data.validation_rows": 16,
    "certify": "off", "feedback.falls_at_most": 1.0, "feedback.metric": "accuracy",
}  # fmt: skip
"""A round of seconds, kept whatever it brings."""


def train_here(training, launch):
    """Train a round in this process, which is some ten seconds faster."""
    resolved = training.recipe
    recipe = Recipe(resolved, {}, lambda *_: resolved, detect_device())
    recipe.train(training.folder, overwrite=True, rehearse=False, progress=False)
    return Finished(["train"], 0, "", ""), read_result(training.folder)


@pytest.fixture
def in_process(monkeypatch):
    monkeypatch.setattr("hf_peft_recipes.api.rounds._train_fresh", train_here)


def correct(asked: Asked) -> Feedback:
    """Say what is right, as a person would."""
    right = asked.completion == asked.reference
    return Feedback(score=float(right), text=f"{asked.reference} it is.", correction=None if right else asked.reference)


def settings(name="ilf", **given):
    overrides = {f"feedback.{key}": value for key, value in given.items()}
    return read_rounds(get_recipe(name, **{"feedback.source": "label", **overrides}).resolved)


def sample(number, completion="no", row="a", **more):
    return Sample(f"r1-{row}-{number}", row, as_turns("Is it?"), completion, "yes", round=1, **more)


# --- what a recipe says


def test_every_recipe_in_rounds_is_tried_below():
    assert sorted(RECIPES) == [name for name in list_recipes() if get_recipe(name).resolved.is_in_rounds]


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_goes_with_methods(name, method):
    recipe = get_recipe(f"{method}+{name}", **{"feedback.source": "numeric"})
    assert recipe.resolved.is_in_rounds
    assert recipe.resolved.shape == "prompts"
    assert recipe.name == f"{method}+{name}"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"source": None}, "feedback.source is missing"),
        ({"rounds": -1}, "feedback.rounds = -1 .* at least 1"),
        ({"samples": 0}, "feedback.samples = 0 .* at least 1"),
        ({"accept": 2.0}, "feedback.accept = 2.0 .* from 0 to 1"),
        ({"max_failed": -0.1}, "feedback.max_failed"),
        ({"metric": "acuracy"}, "no such metric"),
        ({"refine_template": "Again!"}, r"\{prompt\} is missing"),
        ({"refine_template": "{prompt} {answer}"}, r"\{answer\} is none of its places"),
        ({"refine": "hints"}, "did you mean 'hint'"),
        ({"source": "file", "rounds": 2}, "one round"),
    ],
)
def test_refuses_what_cannot_be(given, message):
    with pytest.raises(UserError, match=message):
        settings(**given)


def test_judged_answers_are_not_learned_by_every_objective():
    with pytest.raises(UserError, match="lora learns from its data; what learns from feedback extends `rounds`: ilf"):
        get_recipe("lora", feedback={"rounds": 2, "source": "label"}).train()
    with pytest.raises(UserError, match=r"feedback.compare holds rounds against plain SFT, and dpo"):
        settings("feedback_dpo", compare=True)


def test_what_asks_for_one_training_is_refused(command):
    recipe = get_recipe("lora+ilf")
    with pytest.raises(UserError, match=r"lora\+ilf learns in rounds, each with a trainer of its own"):
        recipe.build_trainer()
    with pytest.raises(UserError, match=r"a sweep compares single trainings; search lora\+sft"):
        recipe.sweep({"learning_rate": [1e-3, 1e-4]})
    with pytest.raises(UserError, match="what is raced or rehearsed is one training, as sft is"):
        recipe.train(budget=make_budget(5.0, None))
    for words in (("train", "ilf", "--rehearse"), ("train", "ilf", "--dry_run")):
        refused = command(*words)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("[a-z]+", "[a-z]+"),
        ("[^\\n]{5,}[.]", "[^\\n]{5,}[.]"),
        ("0.5", 0.5),
        ("true", True),
        ("{a: 1}", {"a": 1}),
        ("null", None),
    ],
)
def test_an_option_is_read_as_what_it_is_for(word, value):
    given = [Override("feedback.options.pattern", word, "--feedback.options.pattern", is_text=True)]
    assert resolve_recipe("ilf", given).resolved.value("feedback.options.pattern") == value


def test_code_is_run_for_who_asks_for_it_alone():
    with pytest.raises(UserError, match="allow_code_execution"):
        get_recipe("ilf", **{"feedback.source": "unit_tests"}).train()
    allowed = get_recipe("ilf", allow_code_execution=True, **{"feedback.source": "unit_tests"})
    assert "allow_code_execution" not in allowed.to_yaml()


# --- what a round draws


def test_every_row_comes_before_any_comes_again():
    rows = [Example(({"role": "user", "content": str(number)},)) for number in range(10)]
    drawn = [row.messages[0]["content"] for number in range(1, 6) for row in pick_rows(rows, 4, number, seed=1)]
    assert Counter(drawn) == {str(number): 2 for number in range(10)}
    assert pick_rows(rows, None, 1, seed=1) == rows
    assert pick_rows(rows, 4, 2, seed=1) == pick_rows(rows, 4, 2, seed=1) != pick_rows(rows, 4, 2, seed=2)


def test_what_a_model_wrote_fills_its_place_and_no_other():
    said = FeedbackRecord(as_turns("Is it?"), "{feedback} {0}", Origin("x"), score=0.0, feedback="It {is}: {prompt}.")
    turns = refine_turns(sample(0, "{feedback} {0}"), said, settings())
    (turn,) = turns
    assert turn["content"].count("Is it?") == 1
    assert "{feedback} {0}" in turn["content"]
    assert "It {is}: {prompt}." in turn["content"]


def test_tokens_are_counted_with_their_end():
    class Words:
        def __call__(self, text, add_special_tokens):
            return type("Encoded", (), {"input_ids": text.split()})

    tokens = Tokens(Words(), 5)
    assert tokens.count("one two") == 3
    assert not tokens.is_spent
    tokens.count("three")
    assert tokens.is_spent


# --- what is said of it


class Told:
    """A source that says what it is told to."""

    name, version, needs_reference = "told", "1", False

    def __init__(self, said):
        self.said, self.asked = said, []

    def judge(self, asked, policy):
        for one in asked:
            self.asked.append(one.id)
            if one.id in self.said:
                if self.said[one.id] is KeyboardInterrupt:
                    raise KeyboardInterrupt
                yield one, self.said[one.id]


def test_nothing_is_asked_twice(tmp_path):
    journal, samples = Journal(tmp_path / "feedback.jsonl"), [sample(number) for number in range(4)]
    said = {one.id: Feedback(score=1.0) for one in samples}
    with pytest.raises(KeyboardInterrupt):
        judge(samples, Told({**said, samples[2].id: KeyboardInterrupt}), None, journal, settings())
    assert len(journal.read()) == 2, "what was said before the end is kept"
    source = Told(said)
    found = judge(samples, source, None, journal, settings())
    assert source.asked == [samples[2].id, samples[3].id]
    assert found.records.keys() == said.keys()
    assert known_samples(samples, journal, source) == found.records


def test_another_version_of_a_source_judges_anew(tmp_path):
    journal, samples = Journal(tmp_path / "feedback.jsonl"), [sample(0)]
    judge(samples, Told({samples[0].id: Feedback(score=1.0)}), None, journal, settings())
    newer = Told({samples[0].id: Feedback(score=0.0)})
    newer.version = "2"
    assert judge(samples, newer, None, journal, settings()).records[samples[0].id].score == 0.0
    assert known_samples(samples, journal, newer)[samples[0].id].score == 0.0, "and what it says is kept"


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (SourceError("judge: HTTP 500"), "HTTP 500"),
        (Feedback(), "it says nothing"),
        (Feedback(score=float("nan")), "score is nan"),
        (Feedback(score=7), "score is 7"),
        (None, "said nothing"),
    ],
)
def test_a_failing_source_is_borne_so_far_and_no_further(said, why, tmp_path):
    samples = [sample(number) for number in range(20)]
    good = {one.id: Feedback(score=1.0) for one in samples}
    one = {**good, samples[0].id: said}
    if said is None:
        del one[samples[0].id]
    found = judge(samples, Told(one), None, Journal(tmp_path / "a.jsonl"), settings())
    assert why in found.failures[samples[0].id]
    assert len(found.records) == 19
    with pytest.raises(SourceError, match=why):
        judge(samples, Told(one), None, Journal(tmp_path / "b.jsonl"), settings(on_error="error"))
    three = {key: value for key, value in one.items() if key not in {samples[1].id, samples[2].id}}
    with pytest.raises(SourceError, match="3 of 20 answers got no feedback"):
        judge(samples, Told(three), None, Journal(tmp_path / "c.jsonl"), settings())


def test_what_is_through_is_not_tried_again():
    class Course:
        settings = settings()

    samples = [sample(0), sample(1, "yes"), sample(0, row="b"), sample(1, row="b"), sample(0, row="c")]
    scores = [0.0, 1.0, 0.0, 0.0, 0.0]
    records = {one.id: one.record(Feedback(score=s), Origin("x")) for one, s in zip(samples, scores, strict=True)}
    records["r1-c-0"] = samples[4].record(Feedback(score=0.0, correction="yes"), Origin("x"))
    judged = type("Judged", (), {"records": records})
    # Row a has a right answer, row c a correction; of row b the same words are tried once.
    assert [one.id for one, _ in still_wrong(Course, samples, judged, 1)] == ["r1-b-0"]
    tried = Sample("r1-b-0.1-0", "b", samples[2].prompt, "well", "yes", round=1)
    records[tried.id] = tried.record(Feedback(score=0.0), Origin("x"))
    assert [one.id for one, _ in still_wrong(Course, [*samples, tried], judged, 2)] == [tried.id]


# --- what is kept


def account(accuracy, right=None):
    return {"metrics": {"accuracy": accuracy}, "regression": None if right is None else {"right": right}}


@pytest.mark.parametrize(
    ("now", "kept", "why"),
    [
        (account(0.6), True, "0.5 to 0.6"),
        (account(0.5), True, "0.5 to 0.5"),
        (account(0.49), False, "accuracy fell from 0.5 to 0.49"),
        (account(0.9, right=0.70), False, "regression set fell from 80.0% to 70.0%"),
        (account(0.9, right=0.76), True, "0.5 to 0.9"),
    ],
)
def test_a_round_is_kept_unless_it_is_worse(now, kept, why):
    verdict = decide(now, account(0.5, right=0.9), account(0.5, right=0.8), settings(), "accuracy")
    assert (verdict.kept, why in verdict.why) == (kept, True), verdict
    worse = decide({"metrics": {"loss": 2.1}}, {"metrics": {"loss": 2.0}}, {}, settings(), "loss")
    assert not worse.kept


# --- whole runs


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_goes_through_a_round(name, in_process, tmp_path):
    source = "self" if name == "self_refine_sft" else correct
    given = {"options": {"verdict": ".*"}} if source == "self" else {}
    recipe = get_recipe(name, feedback={"source": source, **given}, **SMALL)
    result = recipe.train(tmp_path / "out", progress=False)
    jsonschema.validate(result.record, read_schema())
    (one,) = result.record["feedback"]["rounds"]
    assert result.status == "done"
    assert one["kept"]
    assert one["selection"]["rows"] > 0
    assert one["generated_tokens"] > 0
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "out" / "rounds.png").is_file()
    after = result.evaluate(with_base=False)["after"]
    assert after["accuracy"] == pytest.approx(result.metrics["after"]["accuracy"])


@pytest.mark.slow
def test_held_out_rows_never_enter_training(in_process, tmp_path):
    result = get_recipe("ilf", feedback={"source": correct}, **SMALL).train(tmp_path / "out", progress=False)
    held_out = {line["reference"] for line in read_json(RoundFolder(result.folder, 0).scores)}
    assert held_out
    from hf_peft_recipes import trained

    prompts = {row.messages[0]["content"] for row in trained.read_held_out(result.recipe().resolved).held_out}
    drawn = {one.prompt[0]["content"] for one in read_samples(RoundFolder(result.folder, 1).samples)}
    assert len(drawn) == 8
    assert not drawn & prompts


@pytest.mark.slow
def test_a_round_that_makes_it_worse_is_rolled_back(in_process, tmp_path):
    def wrong(asked):
        other = {"positive": "negative", "negative": "positive"}[asked.reference]
        return Feedback(score=float(asked.completion == other), correction=other)

    lowered = {**SMALL, "feedback.falls_at_most": 0.0, "feedback.prompts": 64, "max_steps": 24, "learning_rate": 2e-3}
    recipe = get_recipe("ilf", feedback={"source": wrong}, **lowered)
    with pytest.raises(NotTrainedError, match=r"no round was kept.*accuracy fell from"):
        recipe.train(tmp_path / "out", progress=False)
    record = read_result(tmp_path / "out")
    assert record["status"] == "failed"
    assert record["exit_code"] == 3
    assert record["feedback"]["kept"] == 0
    assert not record["feedback"]["rounds"][0]["kept"]
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()


@pytest.mark.slow
def test_a_round_after_which_nothing_is_a_number_is_rolled_back(monkeypatch, tmp_path):
    def broken(training, launch):
        from safetensors.torch import load_file, save_file

        finished, record = train_here(training, launch)
        path = training.folder / "adapter_model.safetensors"
        save_file({name: tensor * float("nan") for name, tensor in load_file(path).items()}, path)
        return finished, record

    monkeypatch.setattr("hf_peft_recipes.api.rounds._train_fresh", broken)
    with pytest.raises(NotTrainedError, match="round 1: the loss of held-out rows is not a number"):
        get_recipe("ilf", feedback={"source": correct}, **SMALL).train(tmp_path / "out", progress=False)
    record = read_result(tmp_path / "out")
    jsonschema.validate(record, read_schema())
    assert not record["feedback"]["rounds"][0]["kept"]


@pytest.mark.slow
def test_people_are_waited_for_and_not_asked_twice(in_process, tmp_path):
    given = {**SMALL, "feedback.source": "human"}
    out = tmp_path / "out"
    with pytest.raises(WaitingError, match="8 of 8 answers wait for people: `hf-peft-recipes feedback collect"):
        get_recipe("ilf", **given).train(out, progress=False)
    assert read_result(out)["status"] == "waiting"
    samples = read_samples(RoundFolder(out, 1).samples)
    said = [one.record(Feedback(label=False, correction=one.reference), Origin("human:ada")) for one in samples]
    Journal(journal_path(out)).append(said[:5])
    with pytest.raises(WaitingError, match="3 of 8 answers wait"):
        get_recipe("ilf", **given).train(out, resume=True, progress=False)
    Journal(journal_path(out)).append(said)
    result = get_recipe("ilf", **given).train(out, resume=True, progress=False)
    assert read_samples(RoundFolder(out, 1).samples) == samples
    assert result.record["feedback"]["rounds"][0]["corrected"] == 8


@pytest.mark.slow
def test_goes_on_as_the_run_that_it_was(in_process, tmp_path):
    with pytest.raises(WaitingError):
        get_recipe("ilf", **{**SMALL, "feedback.source": "human"}).train(tmp_path / "out", progress=False)
    with pytest.raises(UserError, match=r"--resume: feedback.prompts is 9 now and was 8"):
        other = {**SMALL, "feedback.source": "human", "feedback.prompts": 9}
        get_recipe("ilf", **other).train(tmp_path / "out", resume=True, progress=False)
    with pytest.raises(UserError, match="already holds a run"):
        get_recipe("ilf", **{**SMALL, "feedback.source": "human"}).train(tmp_path / "out", progress=False)


@pytest.mark.slow
def test_the_same_budget_is_spent_otherwise(in_process, tmp_path):
    given = {**SMALL, "feedback.compare": True, "feedback.accept": 0.5, "num_train_epochs": 1}
    recipe = get_recipe("ilf", feedback={"source": correct}, **given)
    result = recipe.train(tmp_path / "out", progress=False)
    jsonschema.validate(result.record, read_schema())
    compared = result.record["feedback"]["comparison"]
    assert compared["generated_tokens"] == result.record["feedback"]["totals"]["generated_tokens"]
    # The last answer spends the rest of it.
    assert 0 <= compared["rft"]["generated_tokens"] - compared["generated_tokens"] <= 3
    assert all(account["refinements"] == 0 for account in compared["rft"]["rounds"])
    assert 0 <= compared["sft"]["metrics"]["accuracy"] <= 1
    assert compared["sft"]["trained_tokens"] > 0
    record, recipe = result.record, (result.folder / "recipe.yaml").read_text()
    record["feedback"]["rounds"][0]["failures"] = {"it raised on 'a row of mine'": 2}
    published = published_record(record, BASE, "me/adapter")
    assert published["feedback"]["rounds"][0]["failures"] == {"answers without feedback": 2}
    where = Publication("me/adapter", "me/base", "0" * 40, "mit", gated=False, relation="adapter", datasets=())
    card = make_card(published, published_recipe(recipe, BASE), where)
    told = card.split("## What feedback brought")[1].split("## ")[0]
    assert "and `test_rounds:correct` (" in told
    assert told.count("| kept |") == 1
    assert "| plain SFT, as many trained tokens |" in told


@pytest.mark.slow
def test_what_was_said_elsewhere_is_learned_from(in_process, command, tmp_path):
    edits = [
        {
            "prompt": f"Review: The soup was {word}.\nIs this review positive or negative?",
            "original": "good",
            "edited": kind,
        }
        for word, kind in [("cold", "negative"), ("great", "positive"), ("bland", "negative"), ("superb", "positive")]
    ]
    write_jsonl(tmp_path / "edits.jsonl", edits)
    imported = command("feedback", "import", "edits.jsonl", "--from", "edits", "--output", "said.jsonl", cwd=tmp_path)
    assert imported.returncode == 0, imported.stderr
    options = {"path": str(tmp_path / "said.jsonl")}
    given = {**SMALL, "feedback.source": "file", "feedback.options": options}
    result = get_recipe("ilf", **given).train(tmp_path / "out", progress=False)
    (one,) = result.record["feedback"]["rounds"]
    assert (one["samples"], one["corrected"], one["selection"]["rows"]) == (4, 4, 4)
    rows = [json.loads(line) for line in RoundFolder(result.folder, 1).rows.read_text().splitlines()]
    assert [row["completion"] for row in rows] == ["negative", "positive", "negative", "positive"]


@pytest.mark.slow
def test_servers_answer_and_judge_and_are_asked_nothing_twice(in_process, tmp_path):
    def told(question):
        text = question["messages"][-1]["content"]
        if "JSON object" not in text:
            return Reply("positive" if "great" in text else "negative")
        good = "positive" in text.split("The answer to judge:")[1]
        return Reply(json.dumps({"score": 10 if good else 2, "critique": "So so.", "correction": None}))

    rows = [
        {"prompt": f"Review {n}: It was {w}.", "completion": "positive"} for n in range(40) for w in ("great", "bad")
    ]
    with serving(told) as server:
        address = {"base_url": server.url, "model": "m"}
        given = {
            **SMALL, "feedback.source": "judge", "feedback.options": address, "feedback.engine": "server",
            "feedback.engine_options": address, "feedback.refine": None, "feedback.metric": "exact_match",
            "evaluation.task": "exact_match",
        }  # fmt: skip
        result = get_recipe("ilf", dataset=rows, **given).train(tmp_path / "out", progress=False)
        asked = len(server.asked)
        (one,) = result.record["feedback"]["rounds"]
        assert asked == 16
        assert 0 < one["accepted"] < 8
        assert one["selection"]["rows"] == one["accepted"]
        # As if it had been killed before it could write down what was said: the server is not asked again.
        (tmp_path / "out" / "feedback.jsonl").unlink()
        for name in ("round-1/round.json", "round-1/steps.json", "result.json"):
            (tmp_path / "out" / name).unlink()
        again = get_recipe("ilf", dataset=rows, **given).train(tmp_path / "out", resume=True, progress=False)
        assert again.record["feedback"]["rounds"][0]["accepted"] == one["accepted"]
        assert len(server.asked) == asked + 8, "the engine draws again, the judge does not judge again"


@pytest.mark.slow
def test_what_grows_too_long_to_be_refined_is_left_out_and_counted(in_process, tmp_path):
    def wordy(asked):
        return Feedback(score=float(asked.completion == asked.reference), text="No. " * 600)

    result = get_recipe("ilf", feedback={"source": wordy}, **SMALL).train(tmp_path / "out", progress=False)
    (one,) = result.record["feedback"]["rounds"]
    assert one["refinements_too_long"] == one["samples"] - one["accepted"] > 0
    assert one["refinements"] == 0


def test_rows_with_tools_are_refused(tmp_path):
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    rows = [
        {"messages": [
            {"role": "user", "content": f"{n} + 1?"}, {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": str(n + 1), "name": "add"}, {"role": "assistant", "content": str(n + 1)},
        ]}
        for n in range(20)
    ]  # fmt: skip
    recipe = get_recipe("ilf", dataset=rows, **{"feedback.source": "exact"})
    with pytest.raises(UserError, match="has rows with tools"):
        recipe.train(tmp_path / "out", progress=False)


def test_a_recipe_of_the_hub_does_not_choose_who_is_told(monkeypatch, tmp_path):
    from hf_peft_recipes import registry
    from hf_peft_recipes.registry import Source

    text = "extends: ilf\nsummary: Mine.\nfeedback: {options: {base_url: 'http://127.0.0.1:9/v1', model: m}}\n"
    find = registry.find
    foreign = Source("mine", "hub:somebody/mine@0123", lambda: text)
    monkeypatch.setattr(registry, "find", lambda name: foreign if name == "hub:somebody/mine" else find(name))
    with pytest.raises(UserError, match=r"source 'judge' \(from hub:somebody/mine@0123\) uses code, files or servers"):
        get_recipe("hub:somebody/mine", **{"feedback.source": "judge"}).train(tmp_path / "out")


WORDS = [
    "train", "ilf", "--feedback.rounds", "2", "--feedback.prompts", "16", "--max_steps", "3", "--evaluation.max_rows",
    "16", "--data.validation_rows", "16", "--certify", "off", "--feedback.falls_at_most", "1", "--feedback.accept", "0.5",
]  # fmt: skip


@pytest.mark.slow
def test_killed_anywhere_it_goes_on_without_asking_again(command, tmp_path):
    out = tmp_path / "out"
    resume: list[str] = []
    # Ended as soon as each of these is there: while it judges, as it begins to train, and between two rounds.
    for name in ("feedback.jsonl", "round-1/train.jsonl", "round-1/round.json"):
        killed = subprocess.Popen(
            [sys.executable, "-m", "hf_peft_recipes", *WORDS, "--output_dir", str(out), *resume],
            cwd=ROOT, env=dict(os.environ), start_new_session=True, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while not (out / name).exists() and killed.poll() is None:
            time.sleep(0.02)
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
        assert (out / name).exists()
        resume = ["--resume"] if (out / "recipe.yaml").exists() else []
    before = journal_path(out).read_text().splitlines()
    finished = command(*WORDS, "--output_dir", out, "--resume", "--json")
    assert finished.returncode == 0, finished.stderr
    after = journal_path(out).read_text().splitlines()
    assert after[: len(before)] == before
    ids = [json.loads(line)["id"] for line in after]
    assert len(ids) == len(set(ids))
    record = json.loads(finished.stdout)
    assert [one["round"] for one in record["feedback"]["rounds"]] == [1, 2]


def test_a_whole_run_can_be_repeated_from_its_recipe(tmp_path):
    recipe = get_recipe("qlora+ilf", dataset=str(write_jsonl(tmp_path / "a.jsonl", [{"prompt": "a", "completion": "b"}])),
                        feedback={"source": "numeric", "options": {"reveal": False}})  # fmt: skip
    path = tmp_path / "mine.yaml"
    path.write_text(recipe.to_yaml())
    again = get_recipe(str(path))
    assert again.resolved.section("feedback") == recipe.resolved.section("feedback")
    assert Path(again.resolved.value("data.dataset")).name == "a.jsonl"
