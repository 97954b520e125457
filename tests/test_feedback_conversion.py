"""Records to rows that are trained on, and to and from the logs that people have."""

import csv
import gzip
import json
import sys

import pytest
from conftest import FAST, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_peft_recipes.api import get_recipe
from hf_peft_recipes.cli.app import main
from hf_peft_recipes.data.formats import detect_format
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.feedback.conversion import (
    ImportRequest,
    convert,
    import_records,
    latest,
    to_dpo,
    to_kto,
    to_sft,
)
from hf_peft_recipes.feedback.conversion.answers import same_text
from hf_peft_recipes.feedback.journal import Journal
from hf_peft_recipes.feedback.record import FeedbackRecord, Origin, Writer, as_turns

QUICK = settings(max_examples=60, deadline=None, database=None)


def record(completion, prompt="What is 2+2?", source="human", **told):
    return FeedbackRecord(as_turns(prompt), completion, Origin(source), **told)


def pairs(made):
    return [(row["chosen"], row["rejected"]) for row in made.rows]


def test_sft_takes_corrections_then_the_best_score_then_the_first():
    records = [
        record("3", score=0.0),
        record("it is 4", score=0.9),
        record("4!", score=1.0),
        record("4.", score=1.0),
        record("5", correction="four", label=False),
        record("6", prompt="another", label=False),
    ]
    assert to_sft(records).rows == [{"prompt": "What is 2+2?", "completion": "four"}]
    made = to_sft(records, accept=0.8, best_of=3)
    assert [row["completion"] for row in made.rows] == ["four", "4!", "4."]
    assert (made.records, made.rows_in, made.rows_used) == (6, 2, 1)
    assert made.row_ids == [records[0].row_id] * 3
    assert made.left_out == {
        "accepted answers that others of their row were taken before": 1,
        "rows without an accepted answer": 1,
    }


def test_answers_that_differ_in_white_space_are_one_but_indentation_tells_them_apart():
    records = [record("It is  4.\n", source="a", label=True), record(" It is 4.", source="b", label=True)]
    assert len(to_sft(records, best_of=5).rows) == 1
    assert same_text("if x:\n    y") != same_text("if x:\ny")
    fixed = record("if x:\ny", correction="if x:\n    y")
    assert pairs(to_dpo([fixed])) == [("if x:\n    y", "if x:\ny")]


def test_the_last_word_of_one_person_counts_and_each_person_has_one():
    first, other = record("4", label=False, id="s:human:ada"), record("4", source="bob", label=True)
    second = record("4", label=True, id="s:human:ada#2")
    assert latest([first, other, second]) == [other, second]
    made = to_sft([first, other, second])
    assert len(made.rows) == 1
    assert made.left_out == {"records that a later one of their source replaces": 1}
    made = to_sft([second, other, first])
    assert not made.rows
    assert made.left_out["rows without an accepted answer, though some are both accepted and rejected"] == 1


def test_kto_goes_with_most_and_leaves_ties_out():
    votes = [("a", True), ("b", True), ("c", False)]
    records = [record("4", source=source, label=label) for source, label in votes]
    records += [record("5", source=source, label=label) for source, label in votes[1:]]
    records += [record("6", score=0.4), record("7", correction="four"), record("", label=False)]
    made = to_kto(records)
    assert [(row["completion"], row["label"]) for row in made.rows] == [
        ("4", True), ("6", False), ("7", False), ("four", True),
    ]  # fmt: skip
    assert made.left_out == {"answers that are empty": 1, "answers that as many accept as reject": 1}
    assert to_kto([record("6", score=0.4)], accept=0.4).rows[0]["label"] is True


def test_dpo_takes_the_correction_then_the_refinement_then_the_best_of_the_row():
    wrong = record("5", score=0.0, id="wrong")
    records = [
        wrong,
        record("4", score=1.0),
        record("6", score=0.0, correction="four"),
        record("4, since 2+2 is 4", score=1.0, refines="wrong"),
        record("22", score=0.0),
    ]
    assert pairs(to_dpo(records)) == [("four", "6")]
    made = to_dpo(records, max_pairs=None)
    assert pairs(made) == [("four", "6"), ("4, since 2+2 is 4", "5"), ("four", "22")]
    assert to_dpo(records, max_pairs=2).left_out == {"pairs that others of their row were taken before": 1}


def test_a_refinement_that_is_no_better_makes_no_pair():
    worse = [record("5", score=0.5, id="first"), record("6", score=0.2, refines="first")]
    assert pairs(to_dpo(worse)) == [("5", "6")]
    better = [record("5", score=0.2, id="first"), record("6", score=0.5, refines="first")]
    assert pairs(to_dpo(better)) == [("6", "5")]
    alike = [record("5", score=0.2, id="first"), record("6", score=0.2, refines="first")]
    assert to_dpo(alike).left_out == {"rows whose answers are judged alike": 1}


def test_scores_of_two_sources_are_not_compared():
    assert not to_dpo([record("4", source="numeric", score=0.4), record("5", source="judge", score=0.2)]).rows
    assert pairs(to_dpo([record("4", source="judge", score=0.4), record("5", source="judge", score=0.2)]))


def test_people_who_contradict_each_other_make_no_pair():
    made = to_dpo([record("a", source="ada", correction="b"), record("b", source="bob", correction="a")])
    assert not made.rows
    assert made.left_out == {"rows whose answers are judged alike": 1}
    first = record("a", source="ada", label=True, correction="b")
    made = to_dpo([first, record("b", source="bob", label=True, correction="a")])
    assert made.left_out == {"pairs that contradict each other": 2}


def test_a_correction_that_is_the_completion_approves_of_it():
    same = record("4", correction="4 ")
    assert to_sft([same]).rows == [{"prompt": "What is 2+2?", "completion": "4"}]
    assert to_dpo([same]).left_out == {"rows with one answer": 1}


def test_prompts_of_several_turns_make_all_rows_conversations():
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2+2?"}]
    records = [record("4", prompt=turns, correction="four"), record("5", prompt="What?", correction="five")]
    for made in (to_sft(records), to_dpo(records), to_kto(records)):
        assert [row["prompt"] for row in made.rows][:: max(1, len(made.rows) // 2)] == [
            turns, [{"role": "user", "content": "What?"}],
        ]  # fmt: skip
        found = detect_format(list(made.rows[0]), {}, "rows", rows=made.rows)
        assert found.example(made.rows[0]).messages[:2] == tuple(turns)
    assert to_sft(records).rows[0]["completion"] == [{"role": "assistant", "content": "four"}]


JUDGED = st.lists(
    st.builds(
        record,
        completion=st.sampled_from(("a", "b ", "b", "", "c")),
        prompt=st.sampled_from(("p", "q")),
        source=st.sampled_from(("ada", "bob")),
        score=st.sampled_from((0.0, 0.5, 1.0)),
        label=st.none() | st.booleans(),
        correction=st.none() | st.sampled_from(("a", "d", "b")),
    ),
    min_size=1,
    max_size=8,
)


@QUICK
@given(JUDGED, st.sampled_from((1, 2, None)))
def test_whatever_was_said_no_pair_is_of_one_answer_and_no_row_is_lost_silently(records, limit):
    made = to_dpo(records, accept=0.5, max_pairs=limit)
    found = [(row["prompt"], same_text(row["chosen"]), same_text(row["rejected"])) for row in made.rows]
    assert all(chosen != rejected and chosen and rejected for _, chosen, rejected in found)
    assert not {(prompt, worse, better) for prompt, better, worse in found} & set(found)
    assert limit is None or all(made.row_ids.count(each) <= limit for each in made.row_ids)
    assert made.rows_used == made.rows_in or made.left_out
    kto = to_kto(records, accept=0.5)
    said = [(row["prompt"], same_text(row["completion"])) for row in kto.rows]
    assert len(said) == len(set(said))
    good = {key for key, row in zip(said, kto.rows, strict=True) if row["label"]}
    sft = {(row["prompt"], same_text(row["completion"])) for row in to_sft(records, accept=0.5, best_of=9).rows}
    assert sft == good


def said(values):
    """Return what a log says, by row; the rows are of one prompt each."""
    made = import_records(
        [{"prompt": f"p{n}", "response": "x", "thumbs": value} for n, value in enumerate(values)], "thumbs"
    )
    return [each.label for each in made.records]


@pytest.mark.parametrize(
    ("up", "down"),
    [
        (True, False), (1, -1), (1, 0), (1.0, -1.0), ("up", "down"), ("like", "dislike"), ("1", "-1"), ("yes", "no"),
        ("Thumbs Up", "Thumbs Down"), ("thumbs-up", "thumbs-down"), (":+1:", ":-1:"), ("👍", "👎"), ("TRUE", "FALSE"),
        ("positive", "negative"),
    ],
)  # fmt: skip
def test_thumbs_in_their_spellings(up, down):
    assert said([up, down, None]) == [True, False]


def test_a_zero_is_no_thumb_where_minus_one_is_down():
    assert said([1, 0, -1]) == [True, False]
    with pytest.raises(
        UserError,
        match=r"row 0 of split 'train': 'thumbs' is 'maybe', neither up nor down \(1 bad rows; `--on_bad_row drop`",
    ):
        said(["maybe"])
    with pytest.raises(UserError, match="no row says anything of an answer: rows without a thumb: 2"):
        said([None, ""])


def scores(values, scale=None):
    rows = [{"prompt": f"p{n}", "answer": "x", "stars": value} for n, value in enumerate(values)]
    return [each.score for each in import_records(rows, "ratings", ImportRequest(scale=scale)).records]


@pytest.mark.parametrize(
    ("values", "scale", "found"),
    [
        ([1, 3, 5], None, [0, 0.5, 1]),
        (["0", "5", "10"], None, [0, 0.5, 1]),
        ([0.25, 1.0], None, [0.25, 1]),
        (["50%", "100%"], None, [0.5, 1]),
        ([1, 3], "1-3", [0, 1]),
        ([4, 2], "0-4", [1, 0.5]),
        ([-1, 1], "-1-1", [0, 1]),
    ],
)
def test_ratings_on_their_scale(values, scale, found):
    assert scores(values, scale) == found


def test_a_scale_that_cannot_be_found_is_asked_for():
    for values in ([1, 1], [-3, 3]):
        with pytest.raises(UserError, match=r"tells no scale; give it: --scale 1-5"):
            scores(values)
    with pytest.raises(UserError, match=r"'stars' is 7, outside of the scale 1-5"):
        scores([7], "1-5")
    with pytest.raises(UserError, match=r"--scale '5': the worst and the best rating are wanted"):
        scores([5], "5")
    made = import_records([{"prompt": "p", "answer": "x", "stars": 4}], "ratings")
    assert made.notes == ["ratings are taken for a scale of 1-5; --scale says otherwise"]


def test_preferences_of_all_kinds():
    turns = [{"role": "user", "content": "hi"}]
    answer = {name: [*turns, {"role": "assistant", "content": name}] for name in ("x", "y")}
    arena = [
        {"conversation_a": answer["x"], "conversation_b": answer["y"], "winner": winner, "model_a": "m", "model_b": "n"}
        for winner in ("model_a", "model_b", "tie", "tie (bothbad)")
    ]
    made = import_records(arena, "preferences")
    assert [(each.completion, each.correction, each.label, each.model.base) for each in made.records] == [
        ("y", "x", None, "n"), ("x", "y", None, "m"), ("x", None, False, "m"), ("y", None, False, "n"),
    ]  # fmt: skip
    assert made.left_out == {"rows where neither answer is better": 1}
    pair = [{"prompt": "p", "chosen": "x", "rejected": "y"}, {"prompt": "p", "chosen": "x", "rejected": "x"}]
    made = import_records(pair, "preferences")
    assert [(each.completion, each.correction) for each in made.records] == [("y", "x")]
    assert made.left_out == {"rows of two answers that are the same": 1}
    transcript = {"chosen": "\n\nHuman: hi\n\nAssistant: x", "rejected": "\n\nHuman: hi\n\nAssistant: y"}
    assert import_records([transcript], "preferences").records[0].prompt == tuple(turns)


@pytest.mark.parametrize(("first", "second"), [(0, 1), (1, 2)])
def test_numbered_answers(first, second):
    rows = [
        {"prompt": f"p{winner}", f"response_{first}": "x", f"response_{second}": "y", "winner": winner}
        for winner in (first, second)
    ]
    assert [each.correction for each in import_records(rows, "preferences").records] == ["x", "y"]


def test_what_a_log_tells_besides():
    rows = [
        {"messages": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}], "rating": "up", "feedback": "nice",
         "user_id": 7, "model": "m", "created_at": "2026-11-26 10:00"},
        {"instruction": "Add.", "input": "2+2", "output": "5", "vote": -1, "timestamp": 1_700_000_000_000},
    ]  # fmt: skip
    (first,) = import_records(rows[:1], "thumbs").records
    assert first.prompt == as_turns("hi") and first.feedback == "nice" and first.source == Origin("human:7")
    assert first.model == Writer("m") and first.time == "2026-11-26T10:00:00+00:00"
    (second,) = import_records(rows[1:], "thumbs", ImportRequest(source="app")).records
    assert second.prompt == as_turns("Add.\n\n2+2") and second.source == Origin("app")
    assert second.time == "2023-11-14T22:13:20+00:00"


@pytest.mark.parametrize(
    ("columns", "given", "message"),
    [
        (
            ["frage", "response", "thumbs"],
            {},
            r"no prompt found in the columns frage, response, thumbs; say which: --columns.prompt COLUMN",
        ),
        (
            ["prompt", "question", "response", "thumbs"],
            {},
            r"which column is the prompt: --columns.prompt prompt or --columns.prompt question\?",
        ),
        (
            ["prompt", "response", "thumbs"],
            {"promt": "prompt"},
            r"--columns.promt: unknown role; did you mean 'prompt'\? \(roles of thumbs: prompt, input",
        ),
        (
            ["prompt", "response", "thumbs"],
            {"prompt": "promt"},
            r"no column 'promt' for prompt \(from --columns.prompt\); did you mean 'prompt'",
        ),
    ],
)
def test_columns_that_are_not_found(columns, given, message):
    with pytest.raises(UserError, match=message):
        import_records([dict.fromkeys(columns, "up")], "thumbs", ImportRequest(given))


def test_bad_rows_are_named_or_dropped(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(
        '{"prompt": "p", "response": "x", "thumbs": 1}\n{"prompt": \n{"prompt": "", "response": "x", "thumbs": 1}\n'
    )
    with pytest.raises(UserError, match=r"log.jsonl:2: broken JSON.*log.jsonl:3: 'prompt' is empty \(2 bad rows"):
        import_records(path, "thumbs")
    made = import_records(path, "thumbs", ImportRequest(drops=True))
    assert (len(made.records), made.rows_in, made.left_out) == (1, 3, {"bad rows": 2})


def test_a_log_read_again_adds_nothing_and_a_vote_that_came_back_counts(tmp_path):
    rows = [{"prompt": "p", "response": "x", "thumbs": thumbs} for thumbs in ("up", "down", "up")]
    journal = Journal(tmp_path / "feedback.jsonl")
    for written in (3, 0):
        assert journal.append(import_records(rows, "thumbs").records) == written
    assert to_kto(journal.read()).rows[0]["label"] is True


HELD = {
    "thumbs": {"label": st.booleans()},
    "ratings": {"score": st.integers(1, 5).map(lambda stars: (stars - 1) / 4)},
    "edits": {"correction": st.sampled_from(("w", "v"))},
    "preferences": {"correction": st.sampled_from(("w", "v"))},
}
FORMS = {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], "text": "u"}


@pytest.mark.parametrize("log_format", HELD)
@QUICK
@given(data=st.data())
def test_what_a_log_can_hold_comes_back(log_format, data):
    numbers = data.draw(st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True))
    records = [
        record(
            "x",
            prompt=[
                *as_turns(FORMS[data.draw(st.sampled_from(list(FORMS)))]),
                {"role": "assistant", "content": "?"},
                *as_turns(str(n)),
            ],
            source=data.draw(st.sampled_from(("human", "human:ada"))),
            feedback=data.draw(st.none() | st.just("so, so")),
            model=Writer(data.draw(st.sampled_from(("", "m")))),
            time=data.draw(st.sampled_from(("", "2026-11-26T10:00:00+00:00"))),
            **{key: data.draw(values) for key, values in HELD[log_format].items()},
        )
        for n in numbers
    ]

    def told(each):
        values = (each.prompt, each.completion, each.label, each.score, each.correction)
        return values if log_format == "preferences" else (*values, each.feedback, each.source, each.model, each.time)

    rows = json.loads(json.dumps(convert(records, log_format).rows))
    request = ImportRequest(scale="1-5" if log_format == "ratings" else None)
    assert [told(each) for each in import_records(rows, log_format, request).records] == [
        told(each) for each in records
    ]


def test_other_scales_come_back_too():
    records = [record("x", prompt=str(n), score=n / 6) for n in range(7)]
    rows = convert(records, "ratings", scale="1-7").rows
    assert [row["rating"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert scores([row["rating"] for row in rows], "1-7") == pytest.approx([each.score for each in records])


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl", "jsonl.gz", "parquet"])
def test_logs_of_all_types_of_file(tmp_path, suffix):
    rows = [{"prompt": "p", "response": "x", "thumbs": "up"}, {"prompt": "p", "response": "y", "thumbs": "down"}]
    path = tmp_path / f"log.{suffix}"
    if suffix == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif suffix == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        text = json.dumps(rows) if suffix == "json" else "".join(json.dumps(row) + "\n" for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    assert [each.label for each in import_records(path, "thumbs").records] == [True, False]


def test_records_are_read_from_parquet_too(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    records = [record("x", label=True, sampling={"seed": 1}), record("y", correction="z", model=Writer("m", "r", "a"))]
    rows = [json.loads(each.to_json()) for each in records]
    columns = {key: [row.get(key) for row in rows] for key in {**rows[0], **rows[1]}}
    pq.write_table(pa.table(columns), tmp_path / "fb.parquet")
    assert import_records(tmp_path / "fb.parquet", "records").records == records
    with pytest.raises(UserError, match="--source: records say it themselves"):
        import_records(tmp_path / "fb.parquet", "records", ImportRequest(source="me"))


@pytest.fixture
def typed(monkeypatch, capsys):
    """Return a function that runs the command `feedback` here: its exit code, and what it wrote to both streams."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["hf-peft-recipes", "feedback", *map(str, words)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def journal(tmp_path):
    made = Journal(tmp_path / "feedback.jsonl")
    made.append(
        [record("5", score=0.0, correction="4", round=1, model=Writer("m")), record("4", source="numeric", score=1.0)]
    )
    return made


def test_validate_tells_what_there_is(typed, journal, tmp_path):
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(journal.path.read_bytes()))
    code, out, _ = typed("validate", journal.path, packed)
    assert code == 0
    assert out.splitlines() == [
        "2 records on 1 row",
        "1 accepted, 1 rejected, 1 corrected, 0 refined, 0 commented",
        "sources: human (1), numeric (1)",
        "rounds: 1 (1)",
        "models: m (1)",
        "2 lines said again, each counted once",
    ]
    code, out, _ = typed("validate", packed, "--json")
    assert code == 0 and json.loads(out)["summary"]["sources"] == {"human": 1, "numeric": 1}


def test_validate_names_every_bad_line(typed, journal):
    good = journal.path.read_text().splitlines()
    changed = good[0].replace('"correction": "4"', '"correction": "5"')
    lines = [good[0], "{", good[1], changed, *['{"schema_version": 1}'] * 25, good[0][:40]]
    journal.path.write_text("\n".join(lines))
    code, out, err = typed("validate", journal.path)
    shown = out.splitlines()
    assert code == 2 and err == "error: 28 of 30 lines hold no record of feedback\n"
    assert shown[0].startswith("feedback.jsonl:2: broken JSON")
    assert "feedback.jsonl:4: the id" in shown[1] and "stands on line 1 already" in shown[1]
    assert shown[2] == "feedback.jsonl:5: prompt is missing" and shown[20] == "and 8 more"
    code, out, _ = typed("validate", journal.path, "--json")
    assert code == 2 and len(json.loads(out)["bad"]) == 28
    assert json.loads(out)["bad"][-1]["place"] == "feedback.jsonl:30"


def test_a_file_of_another_version_is_told_in_one_line(typed, tmp_path):
    path = write_jsonl(tmp_path / "late.jsonl", [{"schema_version": 2}] * 3)
    code, out, err = typed("validate", path)
    assert (code, out) == (2, "")
    assert err == "error: late.jsonl: schema version 2; this version of the software reads 1\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["validate", "missing.jsonl"], "'missing.jsonl': no such file"),
        (
            ["convert", "JOURNAL", "--to", "stf", "--output", "rows.jsonl"],
            "--to 'stf'; did you mean 'sft'? (known: sft, dpo, kto, thumbs, ratings, edits, preferences)",
        ),
        (
            ["convert", "JOURNAL", "--to", "kto", "--best_of", "2", "--output", "rows.jsonl"],
            "--best_of does not go with --to kto, but with sft",
        ),
        (
            ["convert", "JOURNAL", "--to", "thumbs", "--output", "rows.jsonl"],
            "--to thumbs: nothing is left of 2 records: records without a label: 2",
        ),
        (
            ["convert", "JOURNAL", "--to", "sft", "--output", "rows.csv"],
            "--output 'rows.csv': a file that ends in .jsonl is written",
        ),
        (
            ["convert", "JOURNAL", "--to", "sft", "--output", "there.jsonl"],
            "'there.jsonl' exists; --overwrite replaces it",
        ),
        (
            ["import", "there.jsonl", "--from", "thumb", "--output", "fb.jsonl"],
            "--from 'thumb'; did you mean 'thumbs'?",
        ),
        (
            ["import", "there.jsonl", "--from", "edits", "--scale", "1-5", "--output", "fb.jsonl"],
            "--scale: edits have no scale",
        ),
        (
            ["import", "there.jsonl", "--from", "edits", "--colums.prompt", "x", "--output", "fb.jsonl"],
            "--colums.prompt: unknown flag; did you mean 'columns.prompt'",
        ),
        (
            ["import", "there.jsonl", "--from", "edits", "--on_bad_row", "skip", "--output", "fb.jsonl"],
            "--on_bad_row 'skip': error or drop is wanted",
        ),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(typed, journal, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "there.jsonl", [{"prompt": "p", "original": "x", "edited": "y"}])
    code, _, err = typed(*[journal.path if word == "JOURNAL" else word for word in words])
    assert code == 2 and message in err and err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"feedback.jsonl", "there.jsonl"}


def test_convert_refuses_a_file_with_a_bad_line(typed, journal, tmp_path):
    with journal.path.open("a") as file:
        file.write("{}\n{}\n")
    code, _, err = typed("convert", journal.path, "--to", "sft", "--output", tmp_path / "rows.jsonl")
    assert code == 2
    assert "feedback.jsonl:3: schema_version is missing (and 1 more lines; `feedback validate" in err


def test_from_a_log_to_rows_at_the_command_line(typed, tmp_path):
    log = tmp_path / "log.csv"
    log.write_text("frage,response,thumbs\nWas?,Das.,up\nWas?,Dies.,down\nWer?,Ich.,\n")
    journal, rows = tmp_path / "feedback.jsonl", tmp_path / "new" / "rows.jsonl"
    code, out, _ = typed("import", log, "--from", "thumbs", "--columns.prompt", "frage", "--output", journal)
    assert code == 0
    assert out.splitlines() == [
        f"{journal}: 2 records written of 3 rows",
        "columns: prompt is 'frage', completion is 'response', thumbs is 'thumbs'",
        "left out: rows without a thumb: 1",
    ]
    assert (
        "2 were there already"
        in typed("import", log, "--from", "thumbs", "--columns.prompt", "frage", "--output", journal)[1]
    )
    code, out, _ = typed("convert", journal, "--to", "dpo", "--output", rows)
    assert (code, out) == (0, f"{rows}: 1 line for dpo, of 1 of 1 row (2 records)\n")
    assert json.loads(rows.read_text()) == {"prompt": "Was?", "chosen": "Das.", "rejected": "Dies."}
    code, out, _ = typed("convert", journal, "--to", "kto", "--output", rows, "--overwrite", "--json")
    assert code == 0 and json.loads(out)["written"] == 2 == len(rows.read_text().splitlines())


TO_TRAIN_ON = [record(f"{n}", prompt=f"What is {n} plus one?", correction=f"{n + 1}", label=False) for n in range(30)]


@pytest.mark.parametrize(
    ("target", "recipe", "rows_format", "kept"),
    [("sft", "lora", "prompt_completion", 30), ("dpo", "dpo", "preference", 30), ("kto", "kto", "feedback", 60)],
)
def test_converted_rows_are_what_the_objective_takes(tmp_path, target, recipe, rows_format, kept):
    convert(TO_TRAIN_ON, target).write(tmp_path / "rows.jsonl")
    found = get_recipe(recipe, dataset=str(tmp_path / "rows.jsonl"), **{"data.validation_size": 0}).inspect(0)
    assert found["format"] == rows_format
    assert found["ledger"]["rows"] == {"kept": kept, "split": 0, "truncated": 0, "dropped": 0}
    assert all(check["ok"] for check in found["checks"])


@pytest.mark.slow
def test_converted_pairs_train(tmp_path):
    convert(TO_TRAIN_ON, "dpo").write(tmp_path / "rows.jsonl")
    result = get_recipe("dpo", dataset=str(tmp_path / "rows.jsonl"), max_steps=2, **FAST).train(
        output_dir=tmp_path / "out"
    )
    assert result.record["status"] == "done"
