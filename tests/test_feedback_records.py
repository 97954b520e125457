"""The record of feedback, and the file that only grows: what is written is read back, whatever happens in between."""

import json
import multiprocessing
import re
import resource

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_peft_recipes.errors import UserError
from hf_peft_recipes.feedback.journal import Journal, parse_line
from hf_peft_recipes.feedback.record import (
    BadRecordError,
    FeedbackRecord,
    Origin,
    Writer,
    as_turns,
    read_record,
    read_schema,
)

QUICK = settings(
    max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# What looks like a token of the Hub is masked on its way to the disk, and would not come back.
TEXT = st.text(max_size=20).filter(lambda text: "hf_" not in text)
WORDS = TEXT.filter(str.strip)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
TURNS = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(("system", "user", "assistant", "tool")), "content": TEXT}, optional={"name": TEXT}
    ),
    min_size=1,
    max_size=3,
).map(tuple)
RECORDS = st.builds(
    FeedbackRecord,
    prompt=TURNS,
    completion=TEXT,
    source=st.builds(Origin, WORDS, TEXT),
    score=st.none() | st.floats(0, 1),
    label=st.none() | st.booleans(),
    feedback=st.none() | TEXT,
    correction=WORDS,
    refines=st.none() | TEXT,
    model=st.builds(Writer, TEXT, TEXT, TEXT),
    sampling=st.dictionaries(TEXT, JSON, max_size=3),
    round=st.none() | st.integers(0, 9),
    time=st.sampled_from(("", "2026-11-26T09:30:00Z", "2026-11-26T09:30:00.5+02:00")),
)


def record(number=0, **told):
    given = {"prompt": as_turns(f"What is {number}?"), "completion": "7", "source": Origin("human"), "label": True}
    return FeedbackRecord(**{**given, **told})


@QUICK
@given(RECORDS)
def test_what_is_written_is_read_back(given_record):
    line = given_record.to_json()
    assert "\n" not in line
    assert parse_line(line.encode()) == given_record
    jsonschema.validate(json.loads(line), read_schema())


def test_an_empty_text_is_not_lost():
    given_record = record(feedback="", completion="", sampling={"stop": "", "top_p": None})
    assert read_record(json.loads(given_record.to_json())) == given_record


GOOD = {"schema_version": 1, "prompt": "What?", "completion": "That.", "source": {"name": "human"}, "label": True}
BROKEN = [
    ({"schema_version": 2}, r"schema version 2; this version of the software reads 1"),
    ({"schema_version": True}, r"schema version True"),
    ({"schema_version": ...}, r"schema_version is missing"),
    ({"prompt": ...}, r"prompt is missing"),
    ({"prompt": []}, r"prompt is \[\]; a text, or a list of turns with role and content, is wanted"),
    ({"prompt": [{"role": "user"}]}, r"a list of turns with role and content"),
    ({"prompt": [{"role": "human", "content": "x"}]}, r"role of turn 1 of the prompt is 'human'; known: system, user"),
    ({"prompt": [{"role": "user", "content": "x", "tool_calls": []}]}, r"tool_calls of turn 1 of the prompt is \[\]"),
    ({"completion": None}, r"completion is None; a text is wanted"),
    ({"completion": 7}, r"completion is 7; a text is wanted"),
    ({"source": {"name": ""}}, r"source.name is empty"),
    ({"source": {}}, r"source.name is missing"),
    ({"source": {"nam": "x"}}, r"unknown key 'source.nam'; did you mean 'name'"),
    ({"source": "human"}, r"source is 'human'; a mapping of name, version is wanted"),
    ({"model": {"base": 1}}, r"model.base is 1; a text is wanted"),
    ({"score": 1.5}, r"score is 1.5; a number from 0 to 1 is wanted"),
    ({"score": "1"}, r"score is '1'; a number"),
    ({"score": True}, r"score is True; a number"),
    ({"label": 1}, r"label is 1; true or false is wanted"),
    ({"label": None}, r"it says nothing: score, label or correction is wanted"),
    ({"correction": " "}, r"correction is empty"),
    ({"feedback": ["x"]}, r"feedback is \['x'\]; a text is wanted"),
    ({"round": 1.5}, r"round is 1.5; a whole number is wanted"),
    ({"sampling": []}, r"sampling is \[\]; a mapping is wanted"),
    ({"time": "yesterday"}, r"time is 'yesterday'; 2026-11-26T09:30:00"),
    ({"time": "2026-11-26T09:30:00"}, r"time is '2026-11-26T09:30:00'; .* in place of the offset"),
    ({"id": None}, r"id is None; a text is wanted"),
    ({"complection": "x"}, r"unknown key 'complection'; did you mean 'completion'"),
]


@pytest.mark.parametrize(("change", "reason"), BROKEN)
def test_what_is_no_record_is_refused_with_the_reason_by_code_and_schema(change, reason):
    values = {key: value for key, value in {**GOOD, **change}.items() if value is not ...}
    with pytest.raises(BadRecordError, match=reason):
        read_record(values)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, read_schema())


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "broken JSON"),
        (b"[1]", "a row is a mapping of columns to values, not list"),
        (b"\xff", "not UTF-8"),
        (b'{"a": 1, "a": 2}', "column 'a' stands twice"),
        (json.dumps({**GOOD, "completion": "\ud800"}).encode(), "half of a surrogate pair"),
        (b'{"score": NaN}', "NaN is no number that JSON knows"),
    ],
)
def test_a_line_that_holds_no_record(line, reason):
    with pytest.raises(BadRecordError, match=reason):
        parse_line(line)


def test_what_cannot_be_written_is_no_record():
    with pytest.raises(BadRecordError, match=r"\\ud800 is half of a surrogate pair"):
        record(completion="\ud800")
    with pytest.raises(BadRecordError, match="none that JSON knows"):
        record(sampling={"temperature": float("nan")})


def test_schema_and_record_have_the_same_keys():
    schema = read_schema()["properties"]
    assert set(schema) - {"schema_version"} == set(FeedbackRecord.__dataclass_fields__)
    assert set(schema["source"]["properties"]) == set(Origin.__dataclass_fields__)
    assert set(schema["model"]["properties"]) == set(Writer.__dataclass_fields__)


@QUICK
@given(records=st.lists(RECORDS, min_size=1, max_size=4), cut=st.floats(0, 1), again=st.booleans())
def test_a_crash_at_any_byte_loses_only_the_line_that_was_being_written(tmp_path, records, cut, again):
    path = tmp_path / "feedback.jsonl"
    path.unlink(missing_ok=True)
    journal = Journal(path)
    journal.append(records)
    whole = path.read_bytes()
    kept = whole[: round(cut * len(whole))]
    path.write_bytes(kept)
    written = journal.read()
    assert kept.count(b"\n") <= len(written) <= kept.count(b"\n") + 1
    late = record(99)
    writer = journal if again else Journal(path)
    assert writer.append([late]) == 1
    assert Journal(path).read() == [*written, late]
    assert all(parse_line(line) for line in path.read_bytes().splitlines(keepends=True))


def test_a_last_line_without_its_end_is_kept(tmp_path):
    path = tmp_path / "feedback.jsonl"
    path.write_text(record(1).to_json(), encoding="utf-8")
    journal = Journal(path)
    assert journal.read() == [record(1)]
    assert journal.append([record(1), record(2)]) == 1
    assert journal.read() == [record(1), record(2)]


def test_an_id_is_kept_once(tmp_path):
    path = tmp_path / "feedback.jsonl"
    first, second = record(feedback="first", id="x"), record(feedback="second", id="x")
    assert Journal(path).append([first, second]) == 1
    assert Journal(path).append([second]) == 0
    assert Journal(path).read() == [first]
    path.write_bytes(path.read_bytes() * 2)
    assert Journal(path).read() == [first]


def test_a_file_that_was_replaced_is_read_anew(tmp_path):
    path = tmp_path / "feedback.jsonl"
    journal = Journal(path)
    journal.append([record(1), record(2)])
    path.unlink()
    assert journal.append([record(1)]) == 1
    assert journal.read() == [record(1)]


def test_a_bad_line_is_named_by_its_number_however_late_it_came(tmp_path):
    path = tmp_path / "feedback.jsonl"
    journal = Journal(path)
    journal.append([record(1), record(2)])
    with path.open("a") as file:
        file.write('\n{"score": 1}\n')
    for act in (journal.read, lambda: journal.append([record(3)]), lambda: Journal(path).append([record(3)])):
        with pytest.raises(UserError, match=re.escape("feedback.jsonl:4: schema_version is missing")):
            act()


def write_many(path, first, number):
    journal = Journal(path)
    for at in range(first, first + number):
        journal.append([record(at, completion="long " * 2000)])


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    path = tmp_path / "feedback.jsonl"
    context = multiprocessing.get_context("fork")
    # The two overlap: records 10 to 29 are written by both.
    writers = [context.Process(target=write_many, args=(path, first, 30)) for first in (0, 10)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    ids = [each.id for each in Journal(path).read()]
    assert sorted(ids) == sorted(record(at, completion="long " * 2000).id for at in range(40))
    assert path.read_bytes().count(b"\n") == 40


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "feedback.jsonl"
    journal = Journal(path)
    journal.append([record(1)])
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, hard))
    try:
        with pytest.raises(UserError, match=r"feedback.jsonl' cannot be written: File too large"):
            journal.append([record(2, completion="long " * 100)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert journal.append([record(2, completion="long " * 100)]) == 1


def test_a_folder_in_its_place_is_told(tmp_path):
    with pytest.raises(UserError, match="Is a directory"):
        Journal(tmp_path).append([record()])


def test_a_source_that_fails_leaves_no_lock(tmp_path):
    journal = Journal(tmp_path / "feedback.jsonl")

    def failing():
        yield record(1)
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        journal.append(failing())
    assert not journal.path.exists()
