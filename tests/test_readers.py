"""Files and objects to records: every row is there, or the reason why not, under its own line."""

import gzip
import pickle
import re

import pytest
from conftest import write_jsonl

from hf_peft_recipes.data import columnar, readers
from hf_peft_recipes.data.readers import file_chunks
from hf_peft_recipes.data.sources import read_data
from hf_peft_recipes.errors import UserError


def records(path, headless=False):
    return [record for chunk in file_chunks(path, headless=headless) for record in chunk.records()]


def rows(path, headless=False):
    found = records(path, headless)
    assert not [record for record in found if record.problem]
    return [dict(record.row) for record in found]


def written(path, data: bytes):
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize(
    ("suffix", "content", "expected"),
    [
        (".jsonl", '{"text": "x"}\n\n  \n{"text": "y\\u2028z"}', [(1, {"text": "x"}), (4, {"text": "y\u2028z"})]),
        (".jsonl", '\ufeff{"text": "x"}\r\n{"text": "y\u2028\x85z"}\r\n', [(1, {"text": "x"}), (2, {"text": "y\u2028\x85z"})]),
        (".jsonl", '{"text": "\\ud83d\\ude00"}\n', [(1, {"text": "😀"})]),
        (".json", '[{"text": "x"},\n {"text": "y"}\n]', [(1, {"text": "x"}), (2, {"text": "y"})]),
        (".json", '{"version": [1], "data":\n[{"text": "x"},\n{"text": "y"}], "n": 2}\n', [(2, {"text": "x"}), (3, {"text": "y"})]),
        (".json", '{"text": "x"}\n{"text": "y"}\n', [(1, {"text": "x"}), (2, {"text": "y"})]),
        (".csv", 'a,b\n"x, 1","two\nlines"\n\ny,"say ""hi"""\n', [(2, {"a": "x, 1", "b": "two\nlines"}), (5, {"a": "y", "b": 'say "hi"'})]),
        (".csv", "\ufeffa;b\r\nx;y, z\r\n", [(2, {"a": "x", "b": "y, z"})]),
        (".csv", "a,b\rx,y\r", [(2, {"a": "x", "b": "y"})]),
        (".csv", ",a\n0,x\n", [(2, {"": "0", "a": "x"})]),
        (".tsv", 'a\tb\n" hi , " he said\tx "quoted" y\n', [(2, {"a": '" hi , " he said', "b": 'x "quoted" y'})]),
        (".tsv", 'a\tb\n"tab\there"\t"line\nend"\n', [(2, {"a": "tab\there", "b": "line\nend"})]),
        (".txt", "\ufeffone \n\n\t\ntwo\u2028half\r\n", [(1, {"text": "one "}), (4, {"text": "two\u2028half"})]),
        (".conll", "-DOCSTART- -X- O\n\nEU NNP B-ORG\nrejects VBZ O\n \nBonn\tB-LOC", [
            (3, {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]}), (6, {"tokens": ["Bonn"], "tags": ["B-LOC"]})]),
        (".bio", "a b\tO\n", [(1, {"tokens": ["a b"], "tags": ["O"]})]),
    ],
)  # fmt: skip
def test_every_type_and_where_its_rows_stand(tmp_path, suffix, content, expected, packed):
    path = written(tmp_path / f"a{suffix}{packed}", content.encode())
    assert [(record.place, record.row) for record in records(path)] == [
        (f"{path.name}:{line}", row) for line, row in expected
    ]


@pytest.mark.parametrize(
    ("name", "content", "problems"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n{"a": 3}\n', {2: r"broken JSON: Expecting value \(column 7\)"}),
        ("a.jsonl", b'{"a": 1}\n[1]\n"x"\nnull\n', {2: "not list", 3: "not str", 4: "not NoneType"}),
        ("a.jsonl", b'{"a": 1, "a": 2}\n{"a": 1}\n', {1: "column 'a' stands twice"}),
        ("a.jsonl", b'{"a": {"b": 1, "b": 2}}\n{}\n', {1: "column 'b' stands twice"}),
        ("a.jsonl", b'{"a": NaN}\n{"a": -Infinity}\n{"a": 1e999}\n{"a": 1e9}\n', {1: "NaN is no number", 2: "-Infinity", 3: "1e999"}),
        ("a.jsonl", b'{"a": "caf\xe9"}\n{"a": 1}\n', {1: r"not UTF-8 \(byte 0xe9\); convert"}),
        ("a.jsonl", b'{"a": "\xed\xa0\x80"}\n{"a": 1}\n', {1: r"not UTF-8 \(byte 0xed\)"}),
        ("a.jsonl", b'{"a": "\\ud800"}\n{"a\\udfff": 1}\n{"a": 1}\n', {1: r"\\ud800 is half of a surrogate pair", 2: r"\\udfff"}),
        ("a.jsonl", b'{"a": "x\x00"}\n\x00\x00\n{"a": 1}\n', {1: "a NUL byte", 2: "a NUL byte"}),
        ("a.jsonl", b"[" * 100_000 + b'\n{"a": 1}\n', {1: "nested too deeply|broken JSON"}),
        ("a.jsonl", b'{"a": ' + b"1" * 10_000 + b'}\n{"a": 1}\n', {1: "broken JSON: Exceeds"}),
        ("a.jsonl", b'{"a": "x\ty"}\n{"a": 1}\n', {1: "broken JSON: Invalid control character"}),
        ("a.json", b'[{"a": 1},\n{"a": NaN},\n{"a": 1, "a": 2},\n"x",\n{"a": "\\ud800"},\n{"a": "\xe9"},\n{"a": 2}]', {
            2: "NaN", 3: "stands twice", 4: "not str", 5: "surrogate", 6: "byte 0xe9"}),
        ("a.csv", b'a,b\n1\n1,2,3\n"1\n2",3\nx,y\n', {2: r"\(1 instead of 2\)", 3: r"\(3 instead of 2\)"}),
        ("a.csv", b'a,b\n"x"y,z\ncaf\xe9,1\n\x00,2\nx,y\n', {2: "text follows a closing double quote", 3: "byte 0xe9", 4: "NUL"}),
        ("a.txt", b"one\ncaf\xe9\n\x00\ntwo\n", {2: "byte 0xe9", 3: "NUL"}),
        ("a.conll", b"EU\nBonn B-LOC\n\nx O\n\ncaf\xe9 O\n", {1: "a token and its tag are wanted", 6: "byte 0xe9"}),
    ],
)  # fmt: skip
def test_what_is_no_row_is_a_problem_under_its_line(tmp_path, name, content, problems):
    found = records(written(tmp_path / name, content))
    assert {record.place for record in found if record.problem} == {f"{name}:{line}" for line in problems}
    for record in found:
        assert (record.row is None) == bool(record.problem)
        if record.problem:
            assert re.search(problems[int(record.place.split(":")[1])], record.problem), record.problem
            assert "\n" not in record.problem
    assert [record for record in found if record.row is not None], "the rest of the file was not read"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 100, mtime=0)[:-12], r"a\.jsonl\.gz: the gzip data end too early"),
        ("a.txt.gz", b"no gzip", r"a\.txt\.gz: the gzip data are broken"),
        ("a.parquet", b"PAR1 no parquet", r"a\.parquet: cannot be read as parquet: "),
        ("a.arrow", b"ARROW1 no arrow", r"a\.arrow: cannot be read as arrow: "),
        ("a.arrow", b"no arrow", r"a\.arrow: cannot be read as arrow: "),
        ("a.csv", b'a,b\n1,2\n3,"4\n5,6\n', r"a\.csv:3: a double quote is opened here and never closed"),
        ("a.csv", b'a,b\n1,"x"y"z\n', r"a\.csv:2: text follows a closing double quote.*where the row ends is unclear"),
        ("a.csv", b"a,a\n1,2\n", r"a\.csv:1: column 'a' stands twice in the head"),
        ("a.csv", b"caf\xe9,a\n1,2\n", r"a\.csv:1: not UTF-8 \(byte 0xe9\); convert the file \(in the head"),
        ("a.json", b'{"rows": 1}', r"a\.json: a list of rows is wanted.*\.jsonl"),
        ("a.json", b'{"data": 1}', r"a\.json: a list of rows is wanted"),
        ("a.json", b"{}", r"a\.json: a list of rows is wanted"),
        ("a.json", b"3", r"a\.json: a list of rows is wanted"),
        ("a.json", b'[{"a": 1},\n{"a": ]', r"a\.json:2: broken JSON: Expecting value"),
        ("a.json", b'[{"a": 1},\n', r"a\.json:2: broken JSON: Expecting value; the file ends here"),
        ("a.json", b'[{"a": 1}] x', r"a\.json:1: broken JSON: Extra data"),
        ("a.json", b'{"data": [1], "data": [2]}', r"'data' stands twice"),
        ("a.jsonl", '{"text": "x"}\n'.encode("utf-16"), r"a\.jsonl:1: not UTF-8 but UTF-16 \(byte 0xff\)"),
        ("a.xml", b"<a/>", r"\.xml is not among \.jsonl, \.json, \.csv, \.tsv, \.txt, \.conll.*\.parquet, \.arrow"),
        ("a.jsnl", b"{}", r"did you mean '\.jsonl'"),
        ("a.jsonl", b"", r"data file '.*a\.jsonl' is empty"),
        ("a.parquet", b"", r"a\.parquet' is empty"),
        ("a.jsonl", b"\n\n", r"a\.jsonl' is empty"),
        ("a.csv", b"a,b\n", r"a\.csv' is empty"),
        ("a.json", b"[]", r"a\.json' is empty"),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0), r"a\.jsonl\.gz' is empty"),
        ("a.jsonl", b"[1]\n[2]\n", r"a\.jsonl:1: a row is a mapping.* \(and no row of a\.jsonl can be read\)"),
    ],
)
def test_files_that_cannot_be_read_on(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        list(read_data(str(tmp_path / name)).splits["train"].records())
    assert "\n" not in str(error.value)


def test_a_line_of_ten_megabytes(tmp_path):
    long = {"text": "x" * 10_000_000}
    assert rows(write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}, long, {"text": "b"}]))[1] == long
    (tmp_path / "a.csv").write_text(f"text,n\n{long['text']},1\n")
    assert rows(tmp_path / "a.csv") == [{**long, "n": "1"}]


def test_a_file_without_a_head(tmp_path):
    sentence = "a sentence that is much too long to be the name of a column, as anyone can see who looks at it"
    (tmp_path / "a.tsv").write_text(f"{sentence}\tyes\nother\tno\n")
    assert rows(tmp_path / "a.tsv") == [{"1": sentence, "2": "yes"}, {"1": "other", "2": "no"}]
    (tmp_path / "b.csv").write_text("fine,yes\nbad,no\n")
    assert rows(tmp_path / "b.csv") == [{"fine": "bad", "yes": "no"}]
    assert rows(tmp_path / "b.csv", headless=True) == [{"1": "fine", "2": "yes"}, {"1": "bad", "2": "no"}]
    # pandas writes such a head for columns without names.
    (tmp_path / "c.csv").write_text("0,1\nbad,no\n")
    assert rows(tmp_path / "c.csv", headless=True) == [{"0": "bad", "1": "no"}]


CHATS = [
    {"messages": [{"role": "user", "content": f"é {n}\n"}, {"role": "assistant", "content": "y" * n}]}
    for n in range(40)
]


@pytest.mark.parametrize("chunk_bytes", [1, 7, 64, 1000])
def test_chunk_boundaries_change_nothing(tmp_path, monkeypatch, chunk_bytes):
    path = write_jsonl(tmp_path / "a.jsonl", CHATS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n\n", 5) + b"[1]\nbroken")
    whole = records(path)
    monkeypatch.setattr(readers, "CHUNK_BYTES", chunk_bytes)
    assert len(file_chunks(path)) > 5
    assert records(path) == whole
    assert whole[-1].place == "a.jsonl:47"


def test_chunks_can_be_pickled_and_read_again(tmp_path):
    from datasets import Dataset

    Dataset.from_list(CHATS).to_parquet(str(tmp_path / "a.parquet"))
    write_jsonl(tmp_path / "a.jsonl", CHATS)
    for chunks in (file_chunks(tmp_path / "a.parquet"), file_chunks(tmp_path / "a.jsonl"),
                   columnar.row_chunks(CHATS, "x"), columnar.row_chunks(Dataset.from_list(CHATS), "x")):  # fmt: skip
        for chunk in chunks:
            there = list(pickle.loads(pickle.dumps(chunk)).records())
            assert there == list(chunk.records()) == list(chunk.records())
            assert [dict(record.row) for record in there] == CHATS


def test_pickling_a_chunk_takes_its_rows_only(monkeypatch):
    from datasets import Dataset

    monkeypatch.setattr(columnar, "BATCH_ROWS", 3)
    many = [{"n": n, "text": "x" * 1000} for n in range(100)]
    for given_rows in (many, Dataset.from_list(many)):
        chunk = columnar.row_chunks(given_rows, "split 'train'")[5]
        assert len(pickle.dumps(chunk)) < 20_000
        there = list(pickle.loads(pickle.dumps(chunk)).records())
        assert [record.row["n"] for record in there] == [15, 16, 17]
        assert there[0].place == "row 15 of split 'train'"


def test_parquet_and_arrow(tmp_path, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import ClassLabel, Dataset

    table = pa.table({"text": [f"t{n}" for n in range(100)], "n": list(range(100))})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=30)
    with pa.OSFile(str(tmp_path / "file.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    with pa.OSFile(str(tmp_path / "stream.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    monkeypatch.setattr(columnar, "BATCH_ROWS", 4)
    for name, chunks in (("a.parquet", 4), ("file.arrow", 1), ("stream.arrow", 4)):
        assert len(file_chunks(tmp_path / name)) == chunks
        found = records(tmp_path / name)
        assert [record.row for record in found] == table.to_pylist()
        assert [record.place for record in found] == [f"{name}:row {n}" for n in range(100)]
    labelled = Dataset.from_dict({"text": ["a", "b"], "label": ["neg", "pos"]}).cast_column(
        "label", ClassLabel(names=["neg", "pos"])
    )
    labelled.to_parquet(str(tmp_path / "l.parquet"))
    assert [row["label"] for row in rows(tmp_path / "l.parquet")] == ["neg", "pos"]
    assert [record.row["label"] for record in read_data(labelled).splits["train"].records()] == ["neg", "pos"]
    assert [record.row["label"] for record in read_data(labelled.to_iterable_dataset()).splits["train"].records()] == [
        "neg",
        "pos",
    ]


def test_text_in_parquet_that_is_not_utf8(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    wrong = pa.array([b"a", b"\xe9", b"c"]).view(pa.string())
    pq.write_table(pa.table({"text": wrong}), tmp_path / "a.parquet")
    assert [record.problem for record in records(tmp_path / "a.parquet")] == ["", "not UTF-8 (byte 0xe9)", ""]


def test_parquet_with_a_column_twice(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: column 'a' stands twice"):
        file_chunks(tmp_path / "a.parquet")


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", CHATS)
    chunk = file_chunks(path)[0]
    path.write_text("")
    with pytest.raises(UserError, match="became shorter"):
        list(chunk.records())
