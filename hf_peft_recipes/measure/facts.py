"""The versions, the machine and the commit that a figure was measured with; imports nothing heavy."""

import hashlib
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hf_peft_recipes.registry import shipped_folder

PACKAGES = (
    "hf-peft-recipes",
    "torch",
    "transformers",
    "peft",
    "trl",
    "datasets",
    "accelerate",
    "bitsandbytes",
    "huggingface_hub",
    "tokenizers",
)
OPTIONAL = ("torchao",)
"""Of extras, named where they are installed."""


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages that decide what a run does, Python's among them."""
    versions = {"python": platform.python_version()}
    for package in (*PACKAGES, *OPTIONAL):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            # A checkout on PYTHONPATH has no distribution.
            if package in PACKAGES:
                versions[package] = "not installed"
    return versions


def host_facts() -> dict[str, Any]:
    """Return what the machine is: processor kind, system, cores; no host or user name."""
    return {"machine": platform.machine(), "system": platform.system(), "cores": os.cpu_count()}


@cache
def code_digest() -> str:
    """Return the start of a SHA-256 over this package's sources and recipes: which code a figure is of.

    Unlike a commit it is known where there is no git, and stays what it is when the figures are committed.
    """
    return digest_sources(Path(__file__).parent.parent, shipped_folder())


def digest_sources(package: Path, recipes: Path) -> str:
    """Return the start of a SHA-256 over sources and recipes, each with its name.

    Args:
        package: the folder of the sources.
        recipes: that of the recipes. Lines of theirs that are comments do not count: the head of a recipe tells of its
            receipt, and what was measured is of the same recipe after that is written.
    """
    digest = hashlib.sha256()
    for folder, pattern in ((package, "*.py"), (recipes, "*.yaml")):
        for path in sorted(folder.rglob(pattern)):
            lines = path.read_bytes().splitlines(keepends=True)
            # With a space before it, it may be a line of a block scalar.
            kept = [line for line in lines if pattern != "*.yaml" or not line.startswith(b"#")]
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + b"".join(kept) + b"\0")
    return digest.hexdigest()[:12]


def commit_of(folder: Path) -> str | None:
    """Return the commit that is checked out in the folder, `-dirty` behind it where files differ; None without git."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=folder, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip() or None
