"""Scorers: what they say of an answer, how a recipe names them, and what a model's code cannot do."""

import os
import sys
import time
from pathlib import Path

import pytest

from hf_peft_recipes.errors import UserError
from hf_peft_recipes.scorers import SCORERS
from hf_peft_recipes.scorers.configured import paths_of, read_scorers
from hf_peft_recipes.scorers.sandbox import landlock, namespaces, run_code
from hf_peft_recipes.scorers.unit_tests import code_of, unit_tests

N_IS_WHOLE = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.mark.parametrize(
    ("name", "answer", "reference", "options", "expected"),
    [
        ("regex", "It is 42.", r"It is \d+\.", {}, 1),
        ("regex", "It is 42. Or not.", r"It is \d+\.", {}, 0),
        ("regex", " two\nlines ", None, {"pattern": "two.lines"}, 1),
        ("format", "<think>a < b</think>\n<answer>b</answer>", None, {}, 1),
        ("format", "<think>a</think><answer></answer>", None, {}, 0),
        ("format", "<think>a</think><answer>b</answer> and more", None, {}, 0),
        ("format", "<think>a</think><think>b</think><answer>c</answer>", None, {}, 0),
        ("format", "yes", None, {"pattern": "yes|no"}, 1),
        ("length", "one two three", "any three words", {}, 1),
        ("length", "one two three", None, {"wanted": 4}, 0.75),
        ("length", "one two three", None, {"wanted": 1}, 0),
        ("length", "", None, {"wanted": 2}, 0),
        ("length", "one", None, {"wanted": 10, "unit": "tokens", "tokens": 8}, 0.8),
        ("numeric", "so 1,200 is it", "6 x 200 = 1200\n#### 1200", {}, 1),
        ("numeric", "#### 5, not 6", "#### 6", {}, 0),
        ("numeric", "none", "#### 6", {}, 0),
        ("json_schema", '{"n": 1}', None, {"schema": N_IS_WHOLE}, 1),
        ("json_schema", '```json\n{"n": 1}\n```', None, {"schema": N_IS_WHOLE}, 1),
        ("json_schema", '{"n": "one"}', None, {"schema": N_IS_WHOLE}, 0),
        ("json_schema", 'It is {"n": 1}', None, {"schema": N_IS_WHOLE}, 0),
        ("json_schema", '{"n": NaN}', None, {"schema": {}}, 0),
        ("json_schema", "[" * 100_000, None, {"schema": {}}, 0),
        ("json_schema", "[" * 900 + "]" * 900, None, {"schema": {"items": {"$ref": "#"}}}, 0),
        ("json_schema", "[]", '{"type": "array"}', {}, 1),
    ],
)
def test_what_a_scorer_says(name, answer, reference, options, expected):
    assert SCORERS[name](answer, reference, **options) == pytest.approx(expected)


@pytest.mark.parametrize(
    "elsewhere", ["http://127.0.0.1:9/schema.json", Path("/etc/hostname").as_uri(), "#/$defs/missing"]
)
def test_a_schema_is_looked_for_nowhere_else(elsewhere):
    with pytest.raises(ValueError, match=r"the schema refers to .*, which is not in it"):
        SCORERS["json_schema"]("1", None, schema={"$ref": elsewhere})


def test_a_recipe_names_scorers_with_arguments_or_functions():
    entries = ["exact", {"scorer": "regex", "pattern": "a+"}, {"scorer": "regex", "name": "b", "pattern": "b+"}]
    scorers = read_scorers([*entries, "os.path:join"], "a test", {})
    assert [scorer.name for scorer in scorers] == ["exact", "regex", "b", "join"]
    assert [scorer.needs_reference for scorer in scorers] == [True, False, False, False]
    assert scorers[1].score("aaa", None, tokens=3) == 1
    assert scorers[3].function is os.path.join
    named, functions = paths_of(["exact", code_of])
    assert named == ["exact", "hf_peft_recipes.scorers.unit_tests:code_of"]
    assert functions == {named[1]: code_of}


def test_a_function_is_found_in_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "rewards_of_my_own.py").write_text("def short(completions, **_): return [0.0 for _ in completions]\n")
    monkeypatch.chdir(tmp_path)
    (scorer,) = read_scorers("rewards_of_my_own:short", "--rewards", {})
    assert scorer.name == "short" and scorer.function(completions=["a", "b"]) == [0.0, 0.0]
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("exakt", r"unknown scorer 'exakt' \(from --rewards\); did you mean 'exact'"),
        ({"pattern": "a"}, "names no scorer"),
        ({"scorer": "regex", "patern": "a"}, "has no argument 'patern'; did you mean 'pattern'"),
        ({"scorer": "exact", "pattern": "a"}, "has no argument 'pattern'; it has none"),
        ({"scorer": "regex", "pattern": "("}, r"pattern '\(' of scorer 'regex' .*: missing \)"),
        ({"scorer": "json_schema", "schema": {"type": "whole"}}, r"schema .* of scorer 'json_schema' .*: \$\.type"),
        ({"scorer": "json_schema", "schema": "a.json"}, "a schema is a mapping"),
        ({"scorer": "regex", "tokens": 3}, "has no argument 'tokens'"),
        (["exact", "exact"], "'exact' stands twice .* give each its `name`"),
        ("no_such_module:f", "cannot be imported: ModuleNotFoundError"),
        ("os:no_such_function", "cannot be imported: AttributeError"),
        ("os:sep", "is no function"),
        ("unit_tests", "runs code that the model writes; --allow_code_execution allows it"),
        ({"scorer": "unit_tests", "allow_code_execution": True}, "has no argument 'allow_code_execution'"),
    ],
)
def test_a_mistake_is_told_with_the_nearest_right_answer(entry, told):
    with pytest.raises(UserError, match=told):
        read_scorers(entry, "--rewards", {})


def test_code_runs_only_where_it_is_allowed():
    with pytest.raises(PermissionError, match="--allow_code_execution"):
        unit_tests("x = 1", "assert x == 1")


def test_the_last_block_of_an_answer_is_its_code():
    answer = "First\n```python\ndef f(): return 1\n```\nno:\n```py\ndef f(): return 2\n```\nso it is."
    assert unit_tests(answer, "assert f() == 2", allow_code_execution=True) == 1
    assert unit_tests(answer, "assert f() == 1", allow_code_execution=True) == 0


ABOVE = Path(__file__).resolve()
HARMLESS = {
    "a right answer": ("def add(a, b): return a + b", "assert add(1, 2) == 3"),
    "libraries": ("import collections, dataclasses, json, re, math, tempfile\nx = 1", "assert x"),
    "a file of its own": ("open('x', 'w').write('1')", "import os\nassert open('x').read() == '1'\nos.remove('x')"),
}
HARMFUL = {
    "leaves before the tests": ("import sys\nsys.exit(0)", ""),
    "leaves at once": ("import os\nos._exit(0)", ""),
    "prints that it passed": ("print('passed', flush=True)", "assert False"),
    "a syntax error": ("def f(:", ""),
    "an endless loop": ("while True: pass", ""),
    "sleeps": ("import time\ntime.sleep(60)", ""),
    "ten gigabytes": ("x = bytearray(10 << 30)", ""),
    "a fork": ("import os\nos.fork()", ""),
    "a process": ("import subprocess\nsubprocess.run(['true'])", ""),
    "a socket": ("import socket\nsocket.socket().connect(('127.0.0.1', 9))", ""),
    "writes outside": ("open('/tmp/hf-peft-recipes-was-here', 'w')", ""),
    "reads outside": (f"open({str(ABOVE)!r}).read()", ""),
    "deletes outside": (f"import os\nos.remove({str(ABOVE)!r})", ""),
    "a folder elsewhere": ("import os\nos.open('/tmp', os.O_RDONLY | os.O_DIRECTORY)", ""),
    "native code": ("import ctypes\nctypes.CDLL(None)", ""),
    "floods its output": ("import sys\nwhile True: sys.stdout.write('x' * 9999)", ""),
    "fills the disk": ("f = open('x', 'wb')\nwhile True: f.write(bytes(1 << 20))", ""),
}


OUTSIDE = {
    "a database": "import sqlite3\nc = sqlite3.connect({out!r})\nc.execute('create table t(x)')\nc.commit()",
    "a history": "import readline\nreadline.add_history('x')\nreadline.write_history_file({out!r})",
    "a program": (
        "import _posixsubprocess, os\nr, w = os.pipe()\npid = _posixsubprocess.fork_exec([b'touch', {out!r}.encode()],"
        "[b'/bin/touch', b'/usr/bin/touch'], True, (w,), None, None, -1, -1, -1, -1, -1, -1, r, w, False, False, -1, None, None,"
        "None, -1, None, False)\nassert os.waitpid(pid, 0)[1]"
    ),
    "a pipe": "import os\nos.mkfifo({out!r})",
    "native code": (
        "import importlib.machinery as m, importlib.util as u, _json\nopen('own.so', 'wb').write(open(_json.__file__, 'rb').read())\n"
        "u.module_from_spec(u.spec_from_loader('_json', m.ExtensionFileLoader('_json', 'own.so')))"
    ),
}  # fmt: skip
"""What Python asks nobody about, and the kernel or the harness must."""
_LIFTED = "import sys\nfor name in [n for n, m in sys.modules.items() if m is None]: del sys.modules[name]\n"


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_python_does_not_hear_of_is_refused(name, tmp_path, monkeypatch):
    code = OUTSIDE[name].format(out=str(tmp_path / "out"))
    assert not run_code(code, "", 5.0, 512).passed
    monkeypatch.setattr("hf_peft_recipes.scorers.sandbox.landlock", lambda: 0)
    assert not run_code(code, "", 5.0, 512).passed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not landlock(), reason="this kernel has no Landlock (Linux 5.13)")
@pytest.mark.parametrize("name", ("a history", "a program"))
def test_the_kernel_holds_code_that_python_lets_through(name, tmp_path, monkeypatch):
    code = _LIFTED + OUTSIDE[name].format(out=str(tmp_path / "out"))
    run_code(code, "", 5.0, 512)
    assert list(tmp_path.iterdir()) == []
    # So it is the kernel that did it.
    monkeypatch.setattr("hf_peft_recipes.scorers.sandbox.landlock", lambda: 0)
    run_code(code, "", 5.0, 512)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_library_of_numbers_can_be_used():
    assert run_code("import numpy\nx = numpy.arange(3).sum()", "assert x == 3", 20.0, 2048).passed


@pytest.mark.parametrize("name", HARMLESS)
def test_code_may_do_what_a_solution_does(name):
    assert run_code(*HARMLESS[name], 10.0, 512).passed


@pytest.mark.parametrize("name", HARMFUL)
def test_code_fails_that_does_more(name):
    code, tests = HARMFUL[name]
    started = time.monotonic()
    assert not run_code(code, tests, 1.0, 512).passed
    assert time.monotonic() - started < 60
    assert not Path("/tmp/hf-peft-recipes-was-here").exists()
    assert ABOVE.is_file()


@pytest.mark.parametrize(
    ("code", "tests", "reason"),
    [
        ("def add(a, b): return a - b", "assert add(1, 2) == 3", "AssertionError, at `assert add(1, 2) == 3`"),
        ("def half(n): return n / 0", "half(1)", "ZeroDivisionError: division by zero, at `def half(n): return n / 0`"),
        ("def f(:", "", "SyntaxError: invalid syntax (code.py, line 1)"),
        ("import os\nos._exit(0)", "", "it ended before the tests were through"),
        ("while True: pass", "", "it ran for more than 1 s"),
        ("class E(Exception):\n def __str__(self):\n  while True: pass\nraise E", "", "it ran for more than 1 s"),
        ("raise ValueError('\\x1b[2Jcleared\\n\\nand more')", "", "ValueError: [2Jcleared and more, at `"),
    ],
)
def test_what_ended_code_is_told_in_one_line(code, tests, reason):
    verdict = run_code(code, tests, 1.0 if "while" in code else 20.0, 512)
    assert not verdict.passed and verdict.reason.startswith(reason) and verdict.reason.isprintable()


def test_a_reason_is_bounded_and_decides_nothing():
    verdict = run_code("raise SystemExit('passed ' * 99999)", "", 5.0, 512)
    assert not verdict.passed and len(verdict.reason) < 300
    # Whatever the code writes to the descriptor of reasons, its tests have not run.
    forged = "import os\nfor n in range(3, 20):\n try: os.write(n, b'passed' * 100)\n except OSError: pass\nassert 0"
    assert not run_code(forged, "", 5.0, 512).passed


def test_no_secret_reaches_the_code(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert run_code("import os\nfound = dict(os.environ)", "assert 'HF_TOKEN' not in found, found", 5.0, 512).passed


def test_the_limits_hold_where_the_kernel_gives_no_namespaces(monkeypatch):
    namespaces.cache_clear()
    monkeypatch.setattr("hf_peft_recipes.scorers.sandbox._NAMESPACES", ("no-such-program",))
    assert namespaces() == ()
    try:
        assert run_code("x = 1", "assert x == 1", 5.0, 512).passed
        assert not run_code("while True: pass", "", 1.0, 512).passed
    finally:
        namespaces.cache_clear()
