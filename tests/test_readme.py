"""What the README tells people to type is typed here."""

import re
import shlex
import signal
import subprocess
import sys
import urllib.request

import pytest
from conftest import ROOT, write_jsonl

from hf_peft_recipes.api import resolve_recipe
from hf_peft_recipes.cli.flags import parse_flags

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def commands():
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if shlex.split(line, comments=True)]


def test_every_train_command_resolves():
    """Hub models cannot be had here; the flags of their commands must be right all the same."""
    trained = [words[words.index("train") + 1 :] for words in commands() if "train" in words]
    # Those of the section on publishing are run against a loopback Hub, see test_publishing.py.
    trained = [words for words in trained if not words[0].startswith("hub:") and "--adapter" not in words]
    assert len(trained) >= 7
    for name, *flags in trained:
        own, alone = ("--output_dir", "--num_processes"), ("--rehearse",)
        kept = [
            word
            for at, word in enumerate(flags)
            if word not in (*own, *alone) and (at == 0 or flags[at - 1] not in own)
        ]
        if not name.endswith(".yaml"):
            assert resolve_recipe(name, parse_flags(kept)).resolved.objective in ("sft", "dpo", "grpo", "classify")


def test_the_two_commands_are_those_of_develop():
    assert ["python3", "develop.py", "demo"] in commands()
    assert ["python3", "develop.py", "test"] in commands()
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1].endswith("python3 develop.py test")


def test_the_python_block_runs(tmp_path):
    code = "\n".join(blocks("python")[0].replace("max_steps=20", "max_steps=3").splitlines())
    finished = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "accuracy" in finished.stdout
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_the_decorator_block_runs():
    code = blocks("python")[1] + "\nimport hf_peft_recipes as h\nprint(h.get_recipe('gentle').name)"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.stdout.strip() == "gentle", finished.stderr


def test_the_data_are_looked_at(command, tmp_path):
    for name in ("chats", "questions"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"question": f"{name} {n}?", "answer": f"{n}."} for n in range(20)])
    typed = [words[1:] for words in commands() if "inspect" in words]
    mixed = next(words[1:] for words in commands() if "--data.weights" in words)
    assert len(typed) == 2
    for words in [*typed, ["inspect", *mixed[1:]]]:
        finished = command(*words, cwd=tmp_path)
        assert finished.returncode == 0, finished.stderr
    assert "36" in finished.stdout
    assert "</html>" in (tmp_path / "look.html").read_text(encoding="utf-8")


def test_feedback_becomes_pairs(command, tmp_path):
    votes = "".join(f"What is {n}?,{n},up\nWhat is {n}?,{n + 1},down\n" for n in range(12))
    (tmp_path / "votes.csv").write_text(f"prompt,response,thumbs\n{votes}")
    typed = [words[1:] for words in commands() if words[1:2] == ["feedback"]]
    typed = [words for words in typed if words[1] in ("import", "validate", "convert")]
    assert [words[1] for words in typed] == ["import", "validate", "convert"]
    trained = next(words[2:] for words in commands() if "pairs.jsonl" in words and "train" in words)
    for words in [*typed, ["inspect", *trained]]:
        finished = command(*words, cwd=tmp_path)
        assert finished.returncode == 0, finished.stderr
    assert "preference" in finished.stdout


def test_people_judge(tmp_path):
    write_jsonl(tmp_path / "answers.jsonl", [{"prompt": f"{n}?", "completion": f"{n}."} for n in range(3)])
    typed = {words[2]: words[1:] for words in commands() if words[1:2] == ["feedback"]}
    program = [sys.executable, "-m", "hf_peft_recipes"]
    told = {"cwd": tmp_path, "stdout": subprocess.PIPE, "text": True}
    finished = subprocess.run([*program, *typed["collect"]], input="a\nc\nno\n\n", check=False, **told)
    assert finished.returncode == 0
    assert "2 of 3 judged, 1 wait" in finished.stdout
    # Another one may be listening where the printed command would.
    with subprocess.Popen([*program, *typed["serve"], "--port", "0"], **told) as served:
        page = urllib.request.urlopen(served.stdout.readline().strip()).read()
        served.send_signal(signal.SIGINT)
        # Its last line goes to whoever still reads.
        served.communicate()
    assert served.returncode == 0
    assert page.endswith(b"</html>\n")


@pytest.mark.slow
def test_mapped_columns_and_a_recipe_of_ones_own(command, tmp_path):
    write_jsonl(tmp_path / "questions.jsonl", [{"frage": f"Was ist {n}?", "antwort": f"{n}."} for n in range(20)])
    (tmp_path / "reviews.csv").write_text("text,label\n" + "".join(f"it was {n},good\n" for n in range(20)))
    told = ("frage", "reviews.csv", "cp")
    typed = [words[1:] for words in commands() if any(word in words for word in told) or words[-1] == "mine.yaml"]
    assert [words[0] for words in typed] == ["train", "train", "cp", "train"]
    for words in typed:
        finished = command(*words, *(["--dry_run"] if words[0] == "train" else []), cwd=tmp_path)
        assert finished.returncode == 0, finished.stderr
