"""The versions, the machine and the commit that a figure was measured with; imports nothing heavy."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

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


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages that decide what a run does, Python's among them."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            # A checkout on PYTHONPATH has no distribution.
            versions[package] = "not installed"
    return versions


def host_facts() -> dict[str, Any]:
    """Return what the machine is: processor kind, system, cores; no host or user name."""
    return {"machine": platform.machine(), "system": platform.system(), "cores": os.cpu_count()}


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
