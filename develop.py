"""Commands for a fresh machine with Python 3.11 or newer and nothing else, from a clone of the repository:

    python3 develop.py demo    set up, and train, evaluate and try the embedded demo
    python3 develop.py test    set up, and run every check: lint, types, import layers, tests
    python3 develop.py audit   look up the versions of constraints.txt among the known vulnerabilities

The first two work in a virtual environment of their own (`.venv`), with the versions of `constraints.txt`. It is made
once, and again when `constraints.txt` or `pyproject.toml` change. Further words are handed on: `develop.py test -k
registry`.
"""

import hashlib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".venv"
PYTHON = ENVIRONMENT / ("Scripts" if os.name == "nt" else "bin") / "python"
STAMP = ENVIRONMENT / "installed-for"
AUDITOR = ROOT / ".venv-audit"
VULNERABILITIES = "https://api.osv.dev/v1/vulns/PYSEC-2019-41"
"""One of those that the service has always known, to see whether it can be asked."""


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


def audit(words: list[str]) -> None:
    """Look up what is pinned among the known vulnerabilities; leave with 1 where there is one.

    Without a network nothing fails: a line says that nothing was looked up.
    """
    try:
        with urllib.request.urlopen(VULNERABILITIES, timeout=10) as answer:
            json.load(answer)
    except (OSError, ValueError) as error:
        print(
            f"not audited: {VULNERABILITIES} cannot be asked from here ({error}); see SECURITY.md for the step by hand"
        )
        return
    if not AUDITOR.is_dir():
        venv.create(AUDITOR, with_pip=True)
        run(AUDITOR / "bin" / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check", "pip-audit")
    command = [AUDITOR / "bin" / "pip-audit", "-r", ROOT / "constraints.txt", "--no-deps", "--disable-pip", "-s", "osv"]
    asked = [*map(str, command), "-f", "json", "--progress-spinner", "off", *words]
    finished = subprocess.run(asked, capture_output=True, text=True, check=False)
    try:
        code, lines = audited(json.loads(finished.stdout))
    except ValueError:
        said = (finished.stderr.strip().splitlines() or ["no report"])[-1]
        # The service went away in the middle, which proves nothing either way.
        code, lines = int("ConnectionError" not in said), [f"not audited: pip-audit: {said}"]
    print("\n".join(lines))
    if code:
        sys.exit(code)


def audited(report: dict[str, Any]) -> tuple[int, list[str]]:
    """Return exit code and lines of what pip-audit reports: 1 where a version is vulnerable.

    A version that could not be looked up is said, and no proof of anything.

    Args:
        report: pip-audit's, as JSON.
    """
    packages = report["dependencies"]
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    lines = [
        f"vulnerable: {package['name']} {package['version']}: {one['id']}, mended in {', '.join(one['fix_versions'])}"
        for package in packages
        for one in package.get("vulns", ())
    ]
    code = 1 if lines else 0
    if skipped:
        lines.append(
            f"not audited: {len(skipped)} of {len(packages)} could not be looked up ({', '.join(skipped[:5])} …)"
        )
    if not lines:
        lines.append(f"audited: {len(packages)} versions of constraints.txt, none of them known to be vulnerable")
    return code, lines


def main() -> None:
    """Read the command line."""
    commands = {"demo": demo, "test": test, "audit": audit}
    if sys.version_info < (3, 11):  # noqa: UP036 - this is the script that meets an old Python
        sys.exit("Python 3.11 or newer is needed")
    if len(sys.argv) < 2 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    if sys.argv[1] != "audit":
        set_up()
    commands[sys.argv[1]](sys.argv[2:])


if __name__ == "__main__":
    main()
