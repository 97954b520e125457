"""The task that language feedback can teach: what it tells and hides, what its teacher says, what its figures are."""

import json

import pytest
from conftest import ROOT
from tokenizers import Tokenizer

from benchmarks.feedback import benchmark, figures, make_run, standing
from benchmarks.lesson.book import KNOWN_COUNT, QUALITIES, THINGS, make_book
from benchmarks.lesson.rows import make_lesson
from benchmarks.lesson.teacher import question, say, statement, teach
from benchmarks.report.feedback import report
from hf_peft_recipes.bench.suite import write_lines
from hf_peft_recipes.embedded import MODEL_DIR
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.feedback.asking import Asked

SEED = 1
TINY = {"told": 20, "demonstrations": 40, "asked": 16, "held_out": 8}


@pytest.fixture(scope="module")
def book():
    return make_book(SEED)


@pytest.fixture(scope="module")
def lesson(book):
    return make_lesson(book, SEED)


def asked_of(completion, reference):
    return Asked("1", "1", ({"role": "user", "content": "How?"},), completion, reference)


def test_a_seed_gives_the_same_and_another_one_another(book, lesson):
    assert make_book(SEED) == book and make_lesson(book, SEED) == lesson
    assert make_book(2).truth != book.truth


def test_every_word_is_one_token():
    tokenizer = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
    assert [word for word in (*THINGS, *QUALITIES) if len(tokenizer.encode(f" {word}").ids) != 1] == []


def test_the_start_is_not_told_of_the_other_half(book, lesson):
    unknown = [thing for thing in book.truth if thing not in book.known]
    assert len(book.known) == KNOWN_COUNT and unknown
    direct = [row for row in lesson.start if row["prompt"].endswith("?")]
    assert direct and not [row for row in direct if any(f" {thing} " in row["completion"] for thing in unknown)]
    # Of an unknown thing, demonstrations say what is true no more often than chance does.
    told = [(thing, f"The {thing} was {book.truth[thing]}.") for thing in unknown]
    shown = [(row, right) for row in lesson.start for thing, right in told if f"The {thing} was" in row["completion"]]
    share = sum(right in row["completion"] for row, right in shown) / len(shown)
    assert len(shown) > 1000 and 0.5 < share * len(book.qualities) < 2


def test_held_out_rows_are_in_no_other_list_and_of_all_things(book, lesson):
    held = {frozenset(thing for thing in book.truth if f"the {thing}" in row["prompt"]) for row in lesson.held_out}
    assert len(held) == len(lesson.held_out) == 200 and set.union(*map(set, held)) == set(book.truth)
    direct = [row for row in [*lesson.start, *lesson.asked] if row["prompt"].endswith("?")]
    others = {frozenset(thing for thing in book.truth if f"the {thing}" in row["prompt"]) for row in direct}
    assert not held & others


def test_what_is_demonstrated_follows_from_what_is_said(lesson):
    demonstrations = [row for row in lesson.start if not row["prompt"].endswith("?")]
    for row in demonstrations:
        said = row["prompt"].partition(" No. ")[2]
        assert said and all(f"{sentence.strip('.')}." in row["completion"] for sentence in said.split(". "))


def test_the_teacher_says_what_was_otherwise():
    reference = statement({"kettle": "dull", "lamp": "silly"})
    assert question(["kettle", "lamp"]) == "How was the kettle and the lamp?"
    assert teach(asked_of(reference, reference)) == {"score": 1.0, "text": "Yes."}
    one = statement({"kettle": "dull", "lamp": "rude"})
    assert teach(asked_of(one, reference)) == {"score": 0.5, "text": "No. The lamp was silly."}
    assert teach(asked_of("?", reference)) == {"score": 0.0, "text": f"No. {reference}"}


@pytest.mark.parametrize("more", ["{} The pie was flat.", "{} {}", "{} and"])
def test_more_than_was_asked_is_not_right(more):
    reference = statement({"kettle": "dull"})
    answer = more.format(reference, reference)
    assert teach(asked_of(answer, reference))["score"] == 0.5 and say(answer, reference).startswith("No.")


def test_a_round_that_is_not_kept_leaves_what_was():
    rounds = [{"value": 0.5, "kept": True}, {"value": 0.4, "kept": False}, {"value": None, "kept": False}]
    assert standing(0.3, rounds) == [0.3, 0.5, 0.5, 0.5]


def test_figures_are_those_of_the_records():
    counts = {"samples": 8, "accepted": 2, "refinements": 6, "refinements_accepted": 5, "generated_tokens": 90}
    measured = {"metrics": {"exact_match": 0.5}, "intervals": {"exact_match": [0.4, 0.6]}}
    account = {**counts, **measured, "kept": True, "trained": {"tokens": 70}}
    idle = {**counts, "kept": False}
    start = {"metrics": {"before": {"exact_match": 0.0}}, "measured": {"total_seconds": 60.0}}
    comparison = {"rft": {"rounds": [idle]}, "sft": {**measured, "trained_tokens": 71}}
    feedback = {"start": measured, "rounds": [account], "comparison": comparison}
    line = figures(start, {"feedback": feedback, "measured": {"total_seconds": 40.0}})
    assert line["base"] == 0.0 and line["start"]["value"] == 0.5
    assert line["arms"]["ilf"] == [{**counts, "value": 0.5, "interval": [0.4, 0.6], "trained_tokens": 70, "kept": True}]
    assert line["arms"]["rft"][0]["value"] is None and line["sft"]["trained_tokens"] == 71


def test_another_task_is_another_run():
    assert make_run(1) == make_run(1) != make_run(2)
    assert make_run(1, TINY).rows != make_run(1).rows


@pytest.mark.parametrize(("words", "message"), [(["--seeds", "0"], "at least 1"), (["stray"], "stray")])
def test_a_mistake_is_told_before_anything_runs(words, message):
    with pytest.raises(UserError, match=message):
        benchmark(words)


@pytest.mark.slow
def test_a_seed_that_learns_nothing_says_so(tmp_path):
    words = [word for name, size in TINY.items() for word in (f"--{name}", str(size))]
    flags = ["--feedback.rounds", "1", "--feedback.prompts", "8", "--max_steps", "1"]
    (line,) = benchmark(["--seeds", "1", *words, "--out", str(tmp_path / "feedback.jsonl"), *flags])
    # A model that was shown so little has no answer to learn from.
    assert line["status"] == "failed" and "no answer to learn from" in line["error"], line
    assert line["cell"]["rounds"][-6:] == flags and {"hardware", "versions", "commit", "date"} <= set(line)
    assert json.loads((tmp_path / "feedback.jsonl").read_text("utf-8")) == line


def test_the_report_tells_of_both_ways_and_of_what_they_wrote(tmp_path):
    golden = (ROOT / "tests" / "golden" / "results" / "quality.jsonl").read_text("utf-8").splitlines()
    provenance = {key: json.loads(golden[0])[key] for key in ("hardware", "versions", "commit", "date")}
    counts = {"samples": 8, "accepted": 2, "refinements": 0, "refinements_accepted": 0, "trained_tokens": 50}

    def rounds(values, tokens, **more):
        return [
            {**counts, "value": value, "interval": [0, 1], "kept": True, "generated_tokens": tokens, **more}
            for value in values
        ]

    def line(seed, last):
        return {
            "schema_version": 1, "name": f"seed{seed}", "cell": {"seed": seed}, "status": "done", "base": 0.0,
            "start": {"value": 0.25, "interval": [0, 1]}, "sft": {"value": 1.0, "interval": [0, 1], "trained_tokens": 9},
            "arms": {
                "ilf": rounds([0.5, last], 100, refinements=4, refinements_accepted=3),
                "rft": rounds([0.25, 0.3], 250),
            },
            **provenance,
        }  # fmt: skip

    failed = {"schema_version": 1, "name": "seed3", "cell": {"seed": 3}, "status": "failed", "error": "?", **provenance}
    path = tmp_path / "feedback.jsonl"
    write_lines(path, [line(1, 0.75), line(2, 0.85), failed])
    section = report(path, "feedback")
    ilf, rft, sft = section.table.rows
    assert ilf[1] == "2 of 3" and ilf[3:8] == [
        "25.0 %",
        "50.0 %",
        "80.0 % (75.0–85.0 %)",
        "+55.0 (+50.0 to +60.0)",
        "75.0 %",
    ]
    assert rft[5:8] == ["30.0 %", "+5.0", "-"] and rft[8] == "500" and sft[5] == "100.0 %"
    assert "of `rft` on 2.50 times as many generated tokens 30.0 %" in section.block.text
    section.plot.write(tmp_path)
    assert (tmp_path / "feedback.png").stat().st_size > 10_000
    write_lines(path, [failed])
    assert report(path, "feedback").plot is None and report(tmp_path / "none.jsonl", "feedback") is None
