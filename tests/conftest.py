"""What the tests share: the command as a process, small data, and the public data where it is at hand."""

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zygote

ROOT = Path(__file__).resolve().parent.parent
# Nothing of a test stays in the user's cache; set before any import that reads it, for child processes too.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hf-peft-recipes-tests-")
# No test compiles anything; bitsandbytes would get ready to in every process, 1.5 of the 4 s that its import takes.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
# Started in the background of a shell, tests would hand on to their processes that Ctrl-C is to be ignored.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
PUBLIC = Path(os.environ.get("HF_PEFT_RECIPES_PUBLIC_DATA", ROOT.parent / "shared"))
FAST = {
    "evaluation.max_rows": 16, "data.validation_rows": 8, "eval_strategy": "no", "save_strategy": "no", "certify": "off",
}  # fmt: skip
"""Overrides that keep a training test short."""


LONG = (
    "real_data", "publishing_runs", "rounds", "merging", "readme", "preferences", "rehearsal", "launching", "bench",
    "training", "publishing", "heads", "recipes", "peers", "certificate", "stop_test", "quality", "matrix", "people",
)  # fmt: skip
"""Files that take longest, as `--durations` has it."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long files first: a file is one worker's, and at the end short ones fill what each has left."""
    order = {f"test_{name}": at for at, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONG)))


@pytest.fixture(scope="session", autouse=True)
def _offline() -> None:
    # No test may depend on a hub that happens to answer.
    os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session", autouse=True)
def _zygote(_offline: None) -> Iterator[None]:
    """Let commands of ours be forks of a process that has imported the libraries (`tests/zygote`)."""
    with zygote.started():
        yield


@pytest.fixture
def real_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands be real processes, each with its own imports, as users start them."""
    monkeypatch.setattr(sys, "executable", zygote.PYTHON)


@pytest.fixture(scope="module")
def whole_libraries() -> Iterator[None]:
    """Let processes import all that users' processes do: what they take in memory is held against plans."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TORCHDYNAMO_DISABLE", raising=False)
        patch.setattr(sys, "executable", zygote.PYTHON)
        yield


@pytest.fixture(scope="module", autouse=True)
def _settled() -> None:
    # A run in this process collects garbage five times: 0.4 s each, where it looks through all that has been imported.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _same_environment() -> Iterator[None]:
    """Take back what a file's tests have left in the environment: later commands would be no forks for it."""
    before = dict(os.environ)
    yield
    for name in [name for name in os.environ if name not in before and not name.startswith("PYTEST_")]:
        del os.environ[name]
    os.environ.update({name: value for name, value in before.items() if not name.startswith("PYTEST_")})


@pytest.fixture
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs `python -m hf_peft_recipes` with some words and returns the finished process."""

    def run(*words: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "hf_peft_recipes", *map(str, words)],
            cwd=cwd or ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300,
            check=False,
        )  # fmt: skip

    return run


@pytest.fixture
def rows() -> list[dict[str, str]]:
    """Return 40 question-answer rows that can be told apart."""
    return [{"question": f"What is {n} plus one?", "answer": f"It is {n + 1}."} for n in range(40)]


@pytest.fixture
def jsonl(tmp_path: Path, rows: list[dict[str, str]]) -> Path:
    """Return a JSONL file of those rows."""
    return write_jsonl(tmp_path / "rows.jsonl", rows)


@pytest.fixture(scope="session")
def public() -> Path:
    """Return the folder of the public models and data; skip where it is missing."""
    if not (PUBLIC / "models" / "stories260K").is_dir():
        pytest.skip(f"the public models and data are not at {PUBLIC} (HF_PEFT_RECIPES_PUBLIC_DATA names another place)")
    return PUBLIC


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    """Write rows as JSON Lines; return the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
