"""The Hub as the tests hold it."""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

from loopback_hub.accounts import Accounts
from loopback_hub.api import Api
from loopback_hub.discussions import Discussions
from loopback_hub.faults import Fault, Faults
from loopback_hub.refusals import Refusal
from loopback_hub.server import STORAGE_HOST, Answer, Request, Server, flipped
from loopback_hub.store import Commit, PullRequest, Repository, Store
from loopback_hub.transfers import Transfers

AUTHOR = "hub"
"""Who commits what a test puts there itself."""
_SETTINGS = re.compile(r"HF_.*|HUGGING.*|TRANSFORMERS_OFFLINE|.*_proxy", re.IGNORECASE)


class LoopbackHub:
    """A Hub that serves from entering the `with` block to leaving it.

    Repositories are named `user/name`; where a model and a data set share a name, that is the model and
    `datasets/user/name` the data set.

    Args:
        folder: where its files lie; made where it is missing.
        lfs_bytes: files that are larger go to the large file storage, as those with certain suffixes always do.
        part_bytes: large objects above it are uploaded in parts of this size.
        page_size: entries of a page of a list.
    """

    def __init__(
        self, folder: Path, lfs_bytes: int = 10 * 2**20, part_bytes: int = 64 * 2**20, page_size: int = 1000
    ) -> None:
        self.folder = Path(folder)
        self._faults = Faults()
        self._server = Server(self._respond, self._faults)
        self._accounts = Accounts()
        self._store = Store(self.folder / "repositories", lfs_bytes)
        self._api = Api(self._store, self._accounts, self.url, page_size)
        self._discussions = Discussions(self._api)
        storage_url = f"http://{STORAGE_HOST}:{self._server.port}"
        self._transfers = Transfers(self._api, storage_url, self.folder / "incoming", part_bytes)
        self._homes = 0

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()

    @property
    def url(self) -> str:
        """The Hub's address, for `HF_ENDPOINT`."""
        return f"http://127.0.0.1:{self._server.port}"

    @property
    def requests(self) -> list[Request]:
        """Everything that was received so far, the storage's requests included."""
        return list(self._server.requests)

    def environment(self, token: str | None = None, cache: Path | None = None) -> dict[str, str]:
        """Return the whole environment of a process that is to talk to this Hub.

        Args:
            token: in `HF_TOKEN`; nobody's without it.
            cache: in `HF_HOME`; a new and empty folder without it.
        """
        if cache is None:
            self._homes += 1
            cache = self.folder / "homes" / str(self._homes)
        cache.mkdir(parents=True, exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if not _speaks_of_a_hub(name)}
        # Set rather than left out, so that laying this over another environment leaves nothing of that one.
        return kept | {
            "HF_ENDPOINT": self.url, "HF_HOME": str(cache), "HF_HUB_CACHE": str(cache / "hub"),
            "HF_DATASETS_CACHE": str(cache / "datasets"), "HF_TOKEN_PATH": str(cache / "token"),
            "HF_TOKEN": token or "", "HUGGING_FACE_HUB_TOKEN": "",
            "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1",
            "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost",
        }  # fmt: skip

    # Users and repositories

    def add_user(
        self, name: str, role: str = "write", permissions: Sequence[str] = ("repo.content.read", "repo.write"),
        organizations: Sequence[str] = (),
    ) -> str:  # fmt: skip
        """Return a new token of a user, who may have several.

        Args:
            role: `write`, `read` or `fineGrained`.
            permissions: what a fine-grained token may; without `repo.write` it only reads.
            organizations: other namespaces that the user writes to.
        """
        return self._accounts.add(name, role, permissions, organizations)

    def add_repo(
        self, name: str, files: Path | Mapping[str, bytes] | None = None, kind: str = "model", private: bool = False,
        gated: bool | str = False, readers: Collection[str] = (), token: str | None = None,
    ) -> str:  # fmt: skip
        """Return the first commit of a new repository that holds these files and no other.

        Args:
            files: a folder, or contents by path.
            gated: True means `auto`.
            readers: users who were let into a gated repository.
            token: of the user whose commit it is, a stranger's without it.
        """
        repository = self._store.create(kind, name, private, "auto" if gated is True else gated)
        for reader in readers:
            repository.let_in(reader)
        if isinstance(files, Path):
            found = sorted(path for path in files.rglob("*") if path.is_file())
            files = {path.relative_to(files).as_posix(): path.read_bytes() for path in found}
        account = self._accounts.of(token)
        return _commit(repository, files or {}, "main", "initial commit", account.name if account else AUTHOR)

    def commit(
        self, name: str, files: Mapping[str, bytes | None], revision: str = "main", title: str = "moves on"
    ) -> str:  # fmt: skip
        """Return the commit that adds these contents to a branch; None deletes a path."""
        return _commit(self._repository(name), files, revision, title)

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """Return the contents that a revision holds, by path."""
        repository = self._repository(name)
        held = repository.at(revision).files
        return {path: repository.location(entry).read_bytes() for path, entry in held.items()}

    def exists(self, name: str) -> bool:
        """Whether there is a repository of that name."""
        try:
            return bool(self._repository(name))
        except KeyError:
            return False

    def refs(self, name: str) -> dict[str, str]:
        """Return the commit of every ref: `refs/heads/main`, `refs/tags/v1`, `refs/pr/1`."""
        return self._repository(name).refs()

    def commits(self, name: str, revision: str = "main") -> list[Commit]:
        """Return the commits of a revision, newest first."""
        return list(self._repository(name).history(revision))

    def pull_requests(self, name: str) -> list[PullRequest]:
        """Return the pull requests, oldest first."""
        return [one for one in self._repository(name).pull_requests() if one.is_pull_request]

    # What goes wrong

    def fail(
        self, method: str, path: str, how: str, times: int | None = 1, after: int = 0, retry_after: int | None = None,
        seconds: float = 0.0,
    ) -> Fault:  # fmt: skip
        """Return a fault that strikes from now on; for the arguments see `Fault`.

        The storage's paths are `/incoming/{kind}s/{name}/{sha256}` for uploads, with the part's number behind it where
        there are parts, and `/objects/{kind}s/{name}/{sha256}` for downloads.
        """
        return self._faults.plan(Fault(method, path, how, times, after, retry_after, seconds))

    def recover(self) -> None:
        """Let everything go well from now on."""
        self._faults.clear()

    def flip_byte(self, name: str, path: str, revision: str = "main") -> None:
        """Damage what is stored: one byte in the middle of a file changes, its ids do not."""
        repository = self._repository(name)
        location = repository.location(repository.entry(repository.at(revision), path))
        location.write_bytes(flipped(location.read_bytes()))

    def _repository(self, name: str) -> Repository:
        kinds = ("dataset",) if name.startswith("datasets/") else ("model", "dataset")
        found = [self._store.find(kind, name.removeprefix("datasets/")) for kind in kinds]
        repository = next((one for one in found if one), None)
        if repository is None:
            raise KeyError(f"no repository {name}")
        return repository

    # Answers

    def _respond(self, request: Request) -> Answer:
        storage = request.host == STORAGE_HOST
        hub = (*self._discussions.routes, *self._api.routes, *self._transfers.routes)
        routes = self._transfers.storage_routes if storage else hub
        path = urlsplit(request.path).path
        for method, pattern, respond in routes:
            if method == request.method and (found := re.fullmatch(pattern, path)):
                parts = {key: part and unquote(part) for key, part in found.groupdict().items()}
                return respond(request, **parts)
        raise Refusal(404, "Sorry, we can't find the page you are looking for.")


def _commit(
    repository: Repository, files: Mapping[str, bytes | None], revision: str, title: str, author: str = AUTHOR
) -> str:  # fmt: skip
    changes = {path: None if content is None else repository.keep(path, content) for path, content in files.items()}
    return repository.commit(f"refs/heads/{revision}", changes, title, author)


def _speaks_of_a_hub(name: str) -> bool:
    return bool(_SETTINGS.fullmatch(name)) and not name.startswith("HF_PEFT_RECIPES_")
