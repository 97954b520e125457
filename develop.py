"""Two commands for a fresh machine with Python 3.11 or newer and nothing else, from a clone of the repository:

    python3 develop.py demo    set up, and train, evaluate and try the embedded demo
    python3 develop.py test    set up, and run every check: lint, types, import layers, tests

Both work in a virtual environment of their own (`.venv`), with the versions of `constraints.txt`. It is made once, and
again when `constraints.txt` or `pyproject.toml` change. Further words are handed on: `develop.py test -k registry`.
"""

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".venv"
PYTHON = ENVIRONMENT / ("Scripts" if os.name == "nt" else "bin") / "python"
STAMP = ENVIRONMENT / "installed-for"


def run(*command: str | Path) -> None:
    """Run a command in the repository's root; leave with its exit code when it fails."""
    print("+", *command, flush=True)
    code = subprocess.run([str(word) for word in command], cwd=ROOT, check=False).returncode
    if code:
        sys.exit(code)


def set_up() -> None:
    """Make the virtual environment, unless it is there for these very requirements."""
    requirements = [(ROOT / name).read_bytes() for name in ("constraints.txt", "pyproject.toml")]
    wanted = hashlib.sha256(b"".join(requirements)).hexdigest()
    if STAMP.is_file() and STAMP.read_text(encoding="utf-8") == wanted:
        return
    venv.create(ENVIRONMENT, with_pip=True, clear=True)
    pip = (PYTHON, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", "constraints.txt")
    # torch first and by its pin alone: asked for by another package, pip may take a build several times as large.
    run(*pip, "torch")
    run(*pip, "-e", ".[test]")
    STAMP.write_text(wanted, encoding="utf-8")


def demo(words: list[str]) -> None:
    """Train the demo with LoRA into `runs/demo`, score it again from its folder, and ask it something."""
    command, folder = (PYTHON, "-m", "hf_peft_recipes"), "runs/demo"
    run(*command, "train", "lora", "--output_dir", folder, "--overwrite", *words)
    run(*command, "chat", folder, "--prompt", "Review: The soup was cold.\nIs this review positive or negative?")


def test(words: list[str]) -> None:
    """Run every check."""
    tools = PYTHON.parent
    run(tools / "ruff", "check", ".")
    run(tools / "ruff", "format", "--check", ".")
    run(tools / "mypy")
    run(tools / "lint-imports")
    # A process a core, each with one thread: torch's threads on shared cores hinder each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Tests start processes by the hundred; without kept bytecode each compiles the package anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # A file is one worker's; they come in the order of tests/conftest.py, which knows the long ones.
    shared = ("-n", str(min(os.cpu_count() or 1, 8)), "--dist", "loadfile", "--no-loadscope-reorder")
    run(PYTHON, "-m", "pytest", *shared, *words)


def main() -> None:
    """Read the command line."""
    commands = {"demo": demo, "test": test}
    if sys.version_info < (3, 11):  # noqa: UP036 - this is the script that meets an old Python
        sys.exit("Python 3.11 or newer is needed")
    if len(sys.argv) < 2 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    set_up()
    commands[sys.argv[1]](sys.argv[2:])


if __name__ == "__main__":
    main()
