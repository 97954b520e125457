"""The command as a user starts it: what it prints, its exit codes, and that bad input loads and writes nothing."""

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import zygote
from conftest import ROOT

from hf_peft_recipes import list_recipes
from hf_peft_recipes.errors import EXIT_CODES

HEAVY = ("torch", "transformers", "peft", "trl", "datasets", "accelerate", "bitsandbytes", "numpy", "pydantic")


@pytest.mark.usefixtures("real_processes")
def test_list(command):
    printed = command("list")
    assert printed.returncode == 0
    assert [line.split()[0] for line in printed.stdout.splitlines()] == list_recipes()
    rows = json.loads(command("list", "q*", "--json").stdout)
    assert [row["name"] for row in rows] == ["qdora", "qlora"]
    assert {row["kind"] for row in rows} == {"method"}


def test_show_json(command):
    table = json.loads(command("show", "qlora", "--json", "--learning_rate", "1e-4").stdout)
    assert (table["name"], table["objective"]) == ("qlora", "sft")
    assert table["quantization"]["bnb_4bit_quant_type"]["value"] == "nf4"
    assert table["training"]["learning_rate"] == {"value": 1e-4, "origin": "--learning_rate", "reason": ""}
    outputs = {command("show", name, "--json").stdout for name in ("lora", "sft", "lora+sft", "sft+lora")}
    assert len(outputs) == 1


def test_show_prints_value_origin_and_reason(command):
    lines = command("show", "lora", "--device", "cpu").stdout.splitlines()
    line = next(line for line in lines if line.startswith("training.learning_rate"))
    assert "2e-4 = 2e-5 (sft) × 10 (lora)" in line
    assert "recipes/objectives/sft.yaml" in line
    assert "(lora)" in line


@pytest.mark.parametrize("words", [["list"], ["list", "--json"], ["show", "qlora"], ["show", "lora+sft", "--json"]])
def test_the_shelf_imports_nothing_heavy(words):
    code = (
        "import sys\n"
        "from hf_peft_recipes.cli.app import app\n"
        f"app({words!r}, standalone_mode=False)\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_importing_the_package_imports_nothing_heavy():
    code = f"import sys, hf_peft_recipes as h; h.list_recipes(); print([n for n in {HEAVY!r} if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_help_is_grouped(command):
    text = command("train", "--help").stdout
    for heading in ("The run", "Several processes", "--learning_rate", "--lora_alpha", "--bnb_4bit_quant_type"):
        assert heading in text
    overview = command("--help").stdout
    assert all(verb in overview for verb in ("list", "show", "cp", "train", "evaluate", "chat"))


def test_shell_completion_offers_the_names():
    program = Path(zygote.PYTHON).with_name("hf-peft-recipes")
    words = {"_HF_PEFT_RECIPES_COMPLETE": "complete_bash", "COMP_WORDS": "hf-peft-recipes show ql", "COMP_CWORD": "2"}
    finished = subprocess.run([program], env={**os.environ, **words}, capture_output=True, text=True, check=False)
    assert finished.stdout.split() == ["qlora"]


def test_cp_takes_a_recipe_home(command, tmp_path):
    target = tmp_path / "mine.yaml"
    assert command("cp", "qlora", target).returncode == 0
    assert target.read_text().startswith("# hf-peft-recipes train qlora")
    target.write_text(target.read_text().replace("extends: lora", "extends: lora\ntraining:\n  learning_rate: 3.0e-4"))
    table = json.loads(command("show", target, "--json").stdout)
    assert table["training"]["learning_rate"]["value"] == 3e-4
    again = command("cp", "lora", target)
    assert again.returncode == 2
    assert "exists; --overwrite replaces it" in again.stderr
    assert command("cp", "qlora+sft", tmp_path / "joined.yaml").returncode == 0
    assert json.loads(command("show", tmp_path / "joined.yaml", "--json").stdout)["adapter"]["r"]["value"] == 16


@pytest.fixture
def broken(tmp_path, jsonl):
    """Return words of bad commands by name; each must be refused without a trace."""
    empty, weightless, pickled = tmp_path / "empty.jsonl", tmp_path / "weightless", tmp_path / "pickled"
    empty.touch()
    for folder in (weightless, pickled):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    (pickled / "pytorch_model.bin").touch()
    used = tmp_path / "used"
    used.mkdir()
    (used / "result.json").write_text("{}")
    half = tmp_path / "half.jsonl"
    half.write_text('{"question": "q", "answer": "a"}\n{"question": "q",')
    (tmp_path / "bad.yaml").write_text("extends: lora\nextends: qlora\n")
    return {
        "recipe": (["lorra"], "unknown recipe 'lorra'; did you mean 'lora'"),
        "key": (["lora", "--lerning_rate", "1"], "unknown option --lerning_rate; did you mean 'learning_rate'"),
        "column": (
            ["lora", "--dataset", jsonl, "--data.columns.prompt", "qestion", "--data.columns.completion", "answer"],
            "no column 'qestion' for prompt",
        ),
        "split": (["lora", "--dataset", jsonl, "--split", "training"], "no split 'training'"),
        "weights": (["lora", "--model", weightless], "has no weights (*.safetensors)"),
        "pickle": (["lora", "--model", pickled], "pytorch_model.bin is a pickle"),
        "model": (["lora", "--model", tmp_path / "nowhere"], "no such folder"),
        "missing": (["lora", "--dataset", tmp_path / "rows.jsnl"], "did you mean 'rows.jsonl'"),
        "empty": (["lora", "--dataset", empty], "is empty"),
        "half": (["lora", "--dataset", half], "half.jsonl:2: broken JSON"),
        "quantization": (["full", "--quantization.load_in_4bit", "true"], "has no adapter to train"),
        "in use": (["lora", "--output_dir", used], "already holds a run (result.json)"),
        "resume": (["lora", "--output_dir", used, "--resume"], "holds no checkpoint"),
        "yaml": ([tmp_path / "bad.yaml"], "bad.yaml:2: key 'extends' stands twice (first on line 1)"),
        "token": (["lora", "--hub_token", "hf_secret"], "a token never stands in a recipe or a flag"),
        "accelerate": (["lora", "--accelerate_config", "dpp"], "did you mean 'ddp'"),
        "processes": (["lora", "--num_processes", "0"], "at least 1 is wanted"),
    }


BAD = (
    "recipe", "key", "column", "split", "weights", "pickle", "model", "missing", "empty", "half", "quantization",
    "in use", "resume", "yaml", "token", "accelerate", "processes",
)  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_line_and_exit_code_2(command, broken, tmp_path, kind):
    assert set(BAD) == set(broken)
    words, message = broken[kind]
    place = tmp_path / "place"
    place.mkdir()
    before = sorted(tmp_path.rglob("*"))
    finished = command("train", *words, cwd=place)
    assert finished.returncode == 2
    assert finished.stdout == ""
    lines = finished.stderr.strip().splitlines()
    assert len([line for line in lines if line.startswith("error: ")]) == 1
    assert message in lines[-1]
    assert "Traceback" not in finished.stderr
    assert "hf_secret" not in finished.stderr
    assert sorted(tmp_path.rglob("*")) == before, "something was written"


def test_bad_input_loads_nothing(tmp_path):
    code = (
        "import sys\n"
        "from hf_peft_recipes.cli.app import main\n"
        "sys.argv = ['hf-peft-recipes', 'train', 'lora', '--dataset', './missing.jsonl']\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert stop.code == 2\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("verb", ["evaluate", "chat"])
def test_a_folder_without_a_run(command, tmp_path, verb):
    finished = command(verb, tmp_path)
    assert finished.returncode == 2
    assert "holds no run" in finished.stderr


def test_a_result_of_another_schema(command, tmp_path):
    (tmp_path / "result.json").write_text('{"schema_version": 99}')
    finished = command("evaluate", tmp_path)
    assert finished.returncode == 2
    assert "schema version 99" in finished.stderr


def test_exit_codes_are_documented():
    from hf_peft_recipes import errors

    raised = {
        value.exit_code
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.RecipeError)
    }
    assert raised <= set(EXIT_CODES)
    readme = (ROOT / "README.md").read_text()
    for code, meaning in EXIT_CODES.items():
        assert f"| {code} | {meaning} |" in readme


def test_a_terminal_gets_one_bar(tmp_path):
    """Run the dry run on a pseudo-terminal: a bar is drawn, and upstream's warnings are not."""
    words = [sys.executable, "-m", "hf_peft_recipes", "train", "lora", "--dry_run"]
    leader, follower = pty.openpty()
    # Rows, columns and two sizes in pixels: a new pseudo-terminal has none, and a bar has no room there.
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    process = subprocess.Popen(words, stdout=follower, stderr=follower, stdin=follower, cwd=tmp_path, close_fds=True)
    os.close(follower)
    chunks = []
    while True:
        try:
            chunk = os.read(leader, 65536)
        except OSError:
            # Linux reports the end of a pseudo-terminal so.
            break
        if not chunk:
            break
        chunks.append(chunk)
    assert process.wait(timeout=60) == 0
    text = b"".join(chunks).decode()
    assert "training" in text
    assert "loss" in text
    assert "dry run: one step of lora" in text
    assert "Warning" not in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("real_processes")
def test_inspect_shows_the_row_that_is_asked_for(command, jsonl, rows):
    shown = command("inspect", "lora", "--dataset", jsonl, "--row", 5, "--json")
    assert shown.returncode == 0, shown.stderr
    (row,) = json.loads(shown.stdout)["rows"]
    assert (row["index"], row["place"]) == (5, "rows.jsonl:6")
    text = "".join(token["text"] for token in row["tokens"])
    assert rows[5]["question"] in text and rows[5]["answer"] in text
    absent = command("inspect", "lora", "--dataset", jsonl, "--row", 5000)
    assert (absent.returncode, absent.stdout) == (2, "")
    assert absent.stderr == "error: --row 5000: the usable training rows are 0 to 39\n"
