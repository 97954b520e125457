"""What holds of reading for any bytes and any rows."""

import csv
import io
import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_readers import records, rows, written

from hf_peft_recipes.data import readers
from hf_peft_recipes.data.readers import READERS
from hf_peft_recipes.errors import UserError

QUICK = settings(
    max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
TEXT_TYPES = [suffix for suffix in READERS if suffix not in (".parquet", ".arrow")]


SNIPPETS = st.sampled_from(
    [
        b'{"a": 1}',
        b"\n",
        b"\r\n",
        b'"',
        b",",
        b"\t",
        b"[",
        b"]",
        b"{",
        b"}",
        b"\xff",
        b"\x00",
        b"\xef\xbb\xbf",
        b"O",
        b" ",
        b'"data": ',
    ]
)
CONTENT = st.one_of(st.binary(max_size=200), st.lists(SNIPPETS, max_size=40).map(b"".join))


@pytest.mark.parametrize("suffix", TEXT_TYPES)
@QUICK
@given(content=CONTENT, raw=st.booleans())
def test_any_bytes_are_read_or_refused(tmp_path, suffix, content, raw):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content) if raw else written(path, content)
    for headless in (False, True):
        try:
            for record in records(path, headless):
                assert (record.row is None) == bool(record.problem)
                assert re.fullmatch(rf"{re.escape(path.name)}:\d+", record.place)
        except UserError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@QUICK
@given(content=CONTENT, start=st.sampled_from([b"", b"ARROW1\x00\x00", b"PAR1", b"\xff\xff\xff\xff\x10\x00\x00\x00"]))
def test_any_bytes_as_columns(tmp_path, suffix, content, start):
    (tmp_path / f"a{suffix}").write_bytes(start + content)
    try:
        records(tmp_path / f"a{suffix}")
    except UserError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("suffix", [".jsonl", ".txt", ".jsonl.gz", ".txt.gz"])
@pytest.mark.parametrize("chunk_bytes", [1, 5, 100])
@QUICK
@given(content=CONTENT)
def test_every_line_is_accounted_for_once(tmp_path, suffix, chunk_bytes, content):
    path = written(tmp_path / f"a{suffix}", content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "CHUNK_BYTES", chunk_bytes)
        try:
            found = records(path)
        except UserError:
            assert content.startswith((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff"))
            return

    def blank(line):
        return not (line.strip() if suffix.startswith(".jsonl") else line.decode(errors="surrogateescape").strip())

    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    assert [record.place for record in found] == [
        f"{path.name}:{number}" for number, line in enumerate(lines, 1) if not blank(line)
    ]


WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3), max_leaves=8,
)  # fmt: skip


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".jsonl.gz", ".json.gz"])
@QUICK
@given(made=st.lists(st.dictionaries(WORDS, VALUES, max_size=4), max_size=6), escaped=st.booleans())
def test_json_rows_come_back(tmp_path, suffix, made, escaped):
    if suffix.startswith(".jsonl"):
        text = "".join(json.dumps(row, ensure_ascii=escaped) + "\n" for row in made)
    else:
        text = json.dumps(made, ensure_ascii=escaped, indent=1)
    assert rows(written(tmp_path / f"a{suffix}", text.encode())) == made


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz"])
@QUICK
@given(made=st.lists(st.tuples(WORDS, WORDS), max_size=6))
def test_delimited_rows_come_back(tmp_path, suffix, made):
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter="\t" if "tsv" in suffix else ",", quoting=csv.QUOTE_ALL)
    writer.writerows([("first", "second"), *made])
    path = written(tmp_path / f"a{suffix}", text.getvalue().encode())
    assert [(row["first"], row["second"]) for row in rows(path)] == made


TOKENS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), min_size=1, max_size=8)


@QUICK
@given(
    made=st.lists(st.lists(st.tuples(TOKENS, st.sampled_from(["O", "B-x", "I-x"])), min_size=1, max_size=5), max_size=5)
)
def test_sentences_come_back(tmp_path, made):
    made = [[pair for pair in sentence if pair[0] != "-DOCSTART-"] for sentence in made]
    text = "\n".join("".join(f"{token}\t{tag}\n" for token, tag in sentence) for sentence in made)
    found = rows(written(tmp_path / "a.conll", text.encode()))
    assert [list(zip(row["tokens"], row["tags"], strict=True)) for row in found] == [s for s in made if s]


@QUICK
@given(made=st.lists(WORDS.filter(lambda text: not re.search(r"[\r\n]", text) and text.strip()), max_size=6))
def test_lines_of_text_come_back(tmp_path, made):
    path = written(tmp_path / "a.txt", "\n".join(made).encode())
    assert [row["text"] for row in rows(path)] == [made[0].removeprefix("\ufeff"), *made[1:]] if made else True
