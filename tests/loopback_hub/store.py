"""Repositories on disk: refs, commits, blobs by git's id, large objects by sha256."""

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loopback_hub.refusals import Refusal, entry_not_found, revision_not_found

KINDS = ("model", "dataset")
LFS_SUFFIXES = (
    ".7z", ".arrow", ".bin", ".bz2", ".ckpt", ".ftz", ".gz", ".h5", ".joblib", ".mlmodel", ".model", ".msgpack", ".npy",
    ".npz", ".onnx", ".ot", ".parquet", ".pb", ".pickle", ".pkl", ".pt", ".pth", ".rar", ".safetensors", ".tar",
    ".tflite", ".tgz", ".wasm", ".xz", ".zip", ".zst",
)  # fmt: skip
"""What the Hub's `.gitattributes` of a new repository sends to the large file storage, whatever its size."""
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()

_NAME = re.compile(r"(?!.*\.\.)[\w][\w./-]{0,120}")
_SHA = re.compile(r"[0-9a-f]{7,40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Entry:
    """A file of a commit."""

    size: int
    """Bytes of the content."""
    oid: str
    """git's blob id: of the content, or of the pointer to a large object."""
    sha256: str | None = None
    """Set for large objects alone."""

    @property
    def pointer_size(self) -> int:
        """Bytes of the pointer to a large object."""
        return len(_pointer(self.sha256 or "", self.size))


@dataclass(frozen=True)
class Commit:
    """One commit, with all the files it holds."""

    sha: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: dict[str, Entry]


@dataclass(frozen=True)
class PullRequest:
    """One pull request or discussion."""

    num: int
    title: str
    description: str
    author: str
    status: str
    """`draft`, `open`, `closed` or `merged`."""
    is_pull_request: bool
    created_at: str
    base: str = ""
    """The commit that it started from."""
    merged_as: str | None = None

    @property
    def revision(self) -> str:
        """Its ref, `refs/pr/N`."""
        return f"refs/pr/{self.num}"


class Store:
    """All repositories, below one folder.

    Args:
        lfs_bytes: files that are larger go to the large file storage; the Hub's limit is 10 MiB.
    """

    def __init__(self, folder: Path, lfs_bytes: int) -> None:
        self.folder, self.lfs_bytes = folder, lfs_bytes
        self._lock = threading.RLock()

    def create(self, kind: str, name: str, private: bool = False, gated: str | bool = False) -> "Repository":
        """Return a new repository without a commit; the caller knows that there is none of that name."""
        if kind not in KINDS:
            raise ValueError(f"kind {kind!r}: one of {', '.join(KINDS)} is wanted")
        folder = self._folder(kind, name)
        folder.mkdir(parents=True)
        settings = {"private": private, "gated": gated, "created_at": _now(), "readers": []}
        _write(folder / "settings.json", json.dumps(settings))
        return Repository(folder, kind, name, self.lfs_bytes, self._lock)

    def find(self, kind: str, name: str) -> "Repository | None":
        """Return the repository, None where there is none."""
        folder = self._folder(kind, name)
        known = bool(_NAME.fullmatch(name)) and (folder / "settings.json").is_file()
        return Repository(folder, kind, name, self.lfs_bytes, self._lock) if known else None

    def all(self, kind: str) -> Iterator["Repository"]:
        """Return the repositories of a kind, by name."""
        for settings in sorted((self.folder / f"{kind}s").glob("*/*/settings.json")):
            name = "/".join(settings.parent.parts[-2:])
            yield Repository(settings.parent, kind, name, self.lfs_bytes, self._lock)

    def _folder(self, kind: str, name: str) -> Path:
        return self.folder / f"{kind}s" / name


class Repository:
    """One repository, read from its folder at every question."""

    def __init__(self, folder: Path, kind: str, name: str, lfs_bytes: int, lock: threading.RLock) -> None:
        self.folder, self.kind, self.name = folder, kind, name
        self.lfs_bytes, self._lock = lfs_bytes, lock

    @property
    def settings(self) -> dict[str, Any]:
        """`private`, `gated`, `created_at`, and `readers`: who was let into a gated repository."""
        return json.loads((self.folder / "settings.json").read_text())

    def let_in(self, reader: str) -> None:
        """Grant a user access to a gated repository."""
        settings = self.settings
        settings["readers"].append(reader)
        _write(self.folder / "settings.json", json.dumps(settings))

    # Refs

    def refs(self) -> dict[str, str]:
        """Return the commit of every ref: `refs/heads/main`, `refs/tags/v1`, `refs/pr/1`."""
        files = (path for path in (self.folder / "refs").rglob("[!.]*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.read_text() for path in sorted(files)}

    def set_ref(self, ref: str, sha: str) -> None:
        """Let a ref point to a commit."""
        if not _NAME.fullmatch(ref):
            raise Refusal(400, f"Invalid reference name: {ref}")
        _write(self.folder / ref, sha)

    def drop_ref(self, ref: str) -> None:
        """Forget a ref."""
        (self.folder / ref).unlink()

    def resolve(self, revision: str) -> str:
        """Return the commit that a branch, a tag, a ref, or a commit's id means, seven digits of it or more."""
        if _NAME.fullmatch(revision):
            for ref in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
                if ref.startswith("refs/") and (self.folder / ref).is_file():
                    return (self.folder / ref).read_text()
            if _SHA.fullmatch(revision):
                found = list((self.folder / "commits").glob(f"{revision}*.json"))
                if len(found) == 1:
                    return found[0].stem
        raise revision_not_found(revision)

    # Commits

    def at(self, revision: str) -> Commit:
        """Return the commit of a revision."""
        sha = self.resolve(revision)
        kept = json.loads((self.folder / "commits" / f"{sha}.json").read_text())
        files = {path: Entry(**entry) for path, entry in kept.pop("files").items()}
        return Commit(sha=sha, files=files, **kept)

    def history(self, revision: str) -> Iterator[Commit]:
        """Return the commits of a revision, newest first."""
        sha: str | None = self.resolve(revision)
        while sha:
            commit = self.at(sha)
            yield commit
            sha = commit.parent

    def last_change(self, commit: Commit, path: str) -> Commit:
        """Return the commit that gave a path, or a folder's files, what they are in `commit`."""

        def below(files: Mapping[str, Entry]) -> dict[str, Entry]:
            return {name: entry for name, entry in files.items() if name == path or name.startswith(f"{path}/")}

        last = commit
        for earlier in self.history(commit.sha):
            if below(earlier.files) != below(commit.files):
                break
            last = earlier
        return last

    def commit(
        self, ref: str, changes: Mapping[str, Entry | None], title: str, author: str, message: str = "",
        parent: str | None = None, onto: str | None = None,
    ) -> str:  # fmt: skip
        """Return the id of a new commit on `ref`.

        Args:
            changes: what paths become; None for deleted.
            parent: the commit that the ref must still have.
            onto: the commit to start from, where it is not the ref's own.
        """
        with self._lock:
            head = onto or self.refs().get(ref)
            if parent and parent != head:
                raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            files = dict(self.at(head).files) if head else {}
            for path, entry in changes.items():
                if entry is None:
                    files.pop(path, None)
                else:
                    files[path] = entry
            kept = {
                "parent": head, "title": title, "message": message, "author": author, "date": _now(),
                "files": {path: asdict(entry) for path, entry in sorted(files.items())},
            }  # fmt: skip
            written = json.dumps(kept)
            sha = hashlib.sha1(f"{written}{time.time_ns()}".encode()).hexdigest()
            _write(self.folder / "commits" / f"{sha}.json", written)
            self.set_ref(ref, sha)
            return sha

    # Contents

    def is_large(self, path: str, size: int) -> bool:
        """Whether a file goes to the large file storage. An empty one never does."""
        return size > 0 and (path.endswith(LFS_SUFFIXES) or "tfevents" in path or size > self.lfs_bytes)

    def keep(self, path: str, content: bytes) -> Entry:
        """Return the entry of a content that is now stored, where its path and size belong."""
        return self.keep_large(content) if self.is_large(path, len(content)) else self.keep_regular(content)

    def keep_regular(self, content: bytes) -> Entry:
        """Return the entry of a content that is now stored as a git blob."""
        oid = git_blob_id(content)
        _write(self.folder / "blobs" / oid, content)
        return Entry(len(content), oid)

    def keep_large(self, content: bytes) -> Entry:
        """Return the entry of a content that is now a large object."""
        sha256 = hashlib.sha256(content).hexdigest()
        _write(self.large_object(sha256), content)
        return self.large_entry(sha256)

    def large_object(self, sha256: str) -> Path:
        """Return where a large object lies, or would lie."""
        if not _SHA256.fullmatch(sha256):
            raise Refusal(400, f"Invalid sha256: {sha256}")
        return self.folder / "lfs" / sha256

    def large_entry(self, sha256: str) -> Entry:
        """Return the entry of a large object that is stored; refuse one that never arrived."""
        path = self.large_object(sha256)
        if not path.is_file():
            raise Refusal(400, f"LFS pointer pointed to a file that does not exist: {sha256}")
        size = path.stat().st_size
        return Entry(size, git_blob_id(_pointer(sha256, size)), sha256)

    def location(self, entry: Entry) -> Path:
        """Return the file that holds the content of an entry."""
        return self.large_object(entry.sha256) if entry.sha256 else self.folder / "blobs" / entry.oid

    def entry(self, commit: Commit, path: str) -> Entry:
        """Return the entry of a path; refuse a path that the commit does not have."""
        if path not in commit.files:
            raise entry_not_found(commit.sha)
        return commit.files[path]

    # Pull requests

    def pull_requests(self) -> list[PullRequest]:
        """Return the pull requests and discussions, oldest first."""
        files = sorted((self.folder / "discussions").glob("[!.]*.json"), key=lambda path: int(path.stem))
        return [PullRequest(**json.loads(file.read_text())) for file in files]

    def open_pull_request(
        self, title: str, description: str, author: str, status: str, base: str = "", is_pull_request: bool = True
    ) -> PullRequest:
        """Return a new pull request; its ref is the caller's to set."""
        with self._lock:
            num = len(self.pull_requests()) + 1
            made = PullRequest(num, title, description, author, status, is_pull_request, _now(), base)
            self.keep_pull_request(made)
            return made

    def keep_pull_request(self, pull_request: PullRequest) -> None:
        """Write down what became of a pull request."""
        _write(self.folder / "discussions" / f"{pull_request.num}.json", json.dumps(asdict(pull_request)))


def git_blob_id(content: bytes) -> str:
    """Return the id that git gives a content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def git_tree_id(entries: Mapping[str, Entry]) -> str:
    """Return an id for a folder that changes with anything below it. (It is not the one that git would give.)"""
    return hashlib.sha1(repr(sorted((path, entry.oid) for path, entry in entries.items())).encode()).hexdigest()


def _pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def _write(path: Path, content: bytes | str) -> None:
    """Write a file so that other threads see all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{threading.get_ident()}-{path.name}")
    beside.write_bytes(content if isinstance(content, bytes) else content.encode())
    beside.replace(path)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
