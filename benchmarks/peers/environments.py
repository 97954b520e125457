"""Environments of other frameworks, each from its own file of pinned requirements.

    python -m benchmarks.peers.environments NAME [NAME …]

They lie in `.venv-peers/` of the checkout, or in `$PEERS_ENVIRONMENTS`.
"""

import os
import subprocess
import sys
import venv
from pathlib import Path

from hf_peft_recipes.errors import UserError, did_you_mean

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = Path(__file__).parent / "requirements"


def folder_of(name: str) -> Path:
    """Return where the environment of that name lies, or would lie."""
    return Path(os.environ.get("PEERS_ENVIRONMENTS") or ROOT / ".venv-peers") / name


def python_of(name: str | None) -> Path | None:
    """Return the Python of an environment, None where it was not made; that of this process for no name."""
    if name is None:
        return Path(sys.executable)
    path = folder_of(name) / ("Scripts" if os.name == "nt" else "bin") / "python"
    return path if path.exists() else None


def make(name: str) -> None:
    """Make the environment anew.

    The file names every package, so nothing is resolved: some of these frameworks ask for packages that serve a GPU or
    a web page only, and have no build without CUDA.

    Raises:
        UserError: there is no such file, or pip refuses.
    """
    path = REQUIREMENTS / f"{name}.txt"
    if not path.is_file():
        known = sorted(file.stem for file in REQUIREMENTS.glob("*.txt"))
        raise UserError(f"no requirements for {name!r}{did_you_mean(name, known)} (known: {', '.join(known)})")
    venv.create(folder_of(name), with_pip=True, clear=True)
    lines = path.read_text(encoding="utf-8").splitlines()
    torch = next(line for line in lines if line.startswith("torch=="))
    # torch first and by its pin alone, with what it needs: asked for by another package, pip may take CUDA's build.
    for words in (["-q", torch], ["-q", "--no-deps", "-r", str(path)]):
        pip = [str(python_of(name)), "-m", "pip", "install", "--disable-pip-version-check", *words]
        if subprocess.run(pip, check=False).returncode:
            raise UserError(f"pip could not install {path.name}; what it said is above")


def main() -> None:
    """Make the environments that are named."""
    try:
        if not sys.argv[1:]:
            raise UserError("which one? python -m benchmarks.peers.environments NAME")
        for name in sys.argv[1:]:
            make(name)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
