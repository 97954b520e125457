"""What a file is on the Hub: the SHA-256 of a large one, the id of a git blob for the others."""

import hashlib
from pathlib import Path
from typing import Any


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_blob_id(path: Path) -> str:
    """Return the id that git gives a file of this content."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def is_same(path: Path, remote: Any) -> bool:
    """Whether a local file is what the Hub holds.

    Args:
        path: the local file.
        remote: a `RepoFile` or `RepoSibling` of huggingface_hub.
    """
    if remote.lfs is not None:
        return path.stat().st_size == remote.lfs.size and sha256(path) == remote.lfs.sha256
    return git_blob_id(path) == remote.blob_id
