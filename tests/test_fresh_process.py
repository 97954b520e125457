"""What a process of its own says when it fails: in words, by a signal, or for want of memory."""

import subprocess
import sys

import pytest

from hf_peft_recipes.fresh_process import last_words, out_of_memory, run_verb


def finished(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_the_last_line_says_what_was_wrong():
    process = finished("import sys; sys.exit('a warning\\nerror: no such file')")
    assert last_words(process) == "no such file"
    assert out_of_memory(process, last_words(process)) == ""


def test_a_signal_is_told_since_the_last_line_is_of_something_else():
    process = finished(
        "import os, signal, sys; print('step 2/2', file=sys.stderr); os.kill(os.getpid(), signal.SIGSEGV)"
    )
    assert last_words(process) == "the process was ended by a signal (Segmentation fault); its last line: step 2/2"
    assert out_of_memory(process, last_words(process)) == ""


def test_a_module_of_the_working_folder_is_not_taken_for_a_library(tmp_path, monkeypatch):
    (tmp_path / "typer.py").write_text("open('it-was-run', 'w').close()")
    monkeypatch.chdir(tmp_path)
    assert run_verb("list").returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["typer.py"]


@pytest.mark.parametrize(
    ("said", "last"),
    [
        ("memory allocation of 131072 bytes failed", "stack backtrace:"),
        ("  what():  std::bad_alloc", "Fatal Python error: Aborted"),
    ],
)
def test_native_code_without_memory_says_so_above_its_last_line(said, last):
    process = finished(
        f"import os, sys; print({said!r}, {last!r}, sep=chr(10), file=sys.stderr, flush=True); os.abort()"
    )
    assert out_of_memory(process, last_words(process)) == said.strip()


def test_what_the_system_kills_had_no_memory():
    process = finished("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert out_of_memory(process, last_words(process)) == "the system ended it for want of memory"


def test_a_python_process_without_memory_says_so():
    process = finished("import resource; resource.setrlimit(resource.RLIMIT_DATA, (2**28, 2**28)); bytearray(2**30)")
    assert out_of_memory(process, last_words(process)) == "MemoryError"
