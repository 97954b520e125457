"""The Hub's JSON endpoints: who am I, repositories, their info, files, refs, commits, branches and tags."""

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

from loopback_hub import cards
from loopback_hub.accounts import Account, Accounts, may_write, signed_in
from loopback_hub.refusals import Refusal, entry_not_found, repository_not_found
from loopback_hub.server import Answer, Request
from loopback_hub.store import GITATTRIBUTES, KINDS, Commit, Entry, Repository, Store, git_tree_id

ADDRESS = r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+(?:/[^/]+)?)"
"""Where what concerns one repository begins."""


class Api:
    """What `/api/…` answers.

    Args:
        url: where this Hub is, as answers name it.
        page_size: entries of a page of a list.
    """

    def __init__(self, store: Store, accounts: Accounts, url: str, page_size: int) -> None:
        self.store, self.accounts, self.url, self.page_size = store, accounts, url, page_size
        repository = ADDRESS
        self.routes: Sequence[tuple[str, str, Callable[..., Answer]]] = (
            ("GET", "/api/whoami-v2", self.whoami),
            ("POST", "/api/repos/create", self.create_repository),
            ("POST", "/api/validate-yaml", self.validate_card),
            ("GET", "/api/(?P<kind>models|datasets)", self.list_repositories),
            ("POST", f"{repository}/preupload/(?P<revision>[^/]+)", self.preupload),
            ("POST", f"{repository}/commit/(?P<revision>[^/]+)", self.commit),
            ("GET", f"{repository}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", self.tree),
            ("POST", f"{repository}/paths-info/(?P<revision>[^/]+)", self.paths_info),
            ("GET", f"{repository}/refs", self.refs),
            ("GET", f"{repository}/commits/(?P<revision>[^/]+)", self.commits),
            ("POST", f"{repository}/branch/(?P<branch>[^/]+)", self.create_branch),
            ("DELETE", f"{repository}/branch/(?P<branch>[^/]+)", self.delete_branch),
            ("POST", f"{repository}/tag/(?P<revision>[^/]+)", self.create_tag),
            ("DELETE", f"{repository}/tag/(?P<tag>[^/]+)", self.delete_tag),
            ("GET", f"{repository}/auth-check(?P<write>/write)?", self.check_access),
            ("GET", f"{repository}/revision/(?P<revision>[^/]+)", self.info),
            ("GET", repository, self.info),
        )

    # Access

    def account(self, request: Request) -> Account | None:
        """Return whose request it is; refuse a token that is not known."""
        return self.accounts.of(request.headers.get("authorization"))

    def readable(self, request: Request, kind: str, name: str) -> tuple[Repository, Account | None]:
        """Return a repository that the request may know of, and whose request it is."""
        account = self.account(request)
        repository = self.store.find(kind.removesuffix("s"), name)
        if repository is None or (repository.settings["private"] and not (account and account.owns(name))):
            raise repository_not_found(account is not None)
        return repository, account

    def opened(self, request: Request, kind: str, name: str) -> Repository:
        """Return a repository whose contents the request may read."""
        repository, account = self.readable(request, kind, name)
        settings = repository.settings
        let_in = account and (account.owns(name) or account.name in settings["readers"])
        if settings["gated"] and not let_in:
            signed = f"Access to {kind.removesuffix('s')} {name} is restricted and you are not in the authorized list."
            words = signed if account else f"Access to {kind.removesuffix('s')} {name} is restricted. Please log in."
            raise Refusal(403 if account else 401, words, "GatedRepo")
        return repository

    def writable(
        self, request: Request, kind: str, name: str, proposed: bool = False
    ) -> tuple[Repository, Account]:  # fmt: skip
        """Return a repository that the request may write to, or propose changes for, and whose request it is."""
        repository, account = self.readable(request, kind, name)
        account = may_write(account, "upload to a repository")
        if not proposed and not account.owns(name):
            raise Refusal(403, f"Forbidden: you don't have the rights to write to {name}.")
        return repository, account

    # Accounts and repositories

    def whoami(self, request: Request) -> Answer:
        return Answer.of_json(signed_in(self.account(request)).described())

    def create_repository(self, request: Request) -> Answer:
        account = may_write(self.account(request), "create a repository")
        wanted = request.json()
        kind = wanted.get("type") or "model"
        name = f"{wanted.get('organization') or account.name}/{wanted['name']}"
        if kind not in KINDS:
            raise Refusal(400, f"Invalid repository type: {kind}")
        if not account.owns(name):
            space = name.split("/")[0]
            raise Refusal(403, f'You don\'t have the rights to create a {kind} under the namespace "{space}"')
        url = f"{self.url}/{'datasets/' if kind == 'dataset' else ''}{name}"
        if self.store.find(kind, name):
            raise Refusal(409, f"You already created this {kind} repo", body={"url": url, "name": name})
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        repository = self.store.create(kind, name, private)
        first = {".gitattributes": repository.keep_regular(GITATTRIBUTES)}
        repository.commit("refs/heads/main", first, "initial commit", account.name)
        return Answer.of_json({"url": url, "name": name, "id": name, "private": private})

    def validate_card(self, request: Request) -> Answer:
        asked = request.json()
        errors, warnings = cards.validate(asked["content"])
        body = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
        return Answer.of_json(body, 400 if errors else 200)

    def list_repositories(self, request: Request, kind: str) -> Answer:
        account = self.account(request)
        author, search = request.asked("author"), (request.asked("search") or "").lower()
        filters = set(request.query.get("filter", []))
        found = []
        for repository in self.store.all(kind.removesuffix("s")):
            if repository.settings["private"] and not (account and account.owns(repository.name)):
                continue
            info = self._info(repository, repository.at("main"), blobs=False)
            if (author and info["author"] != author) or search not in info["id"].lower():
                continue
            if filters <= set(info["tags"]):
                found.append(info if request.flagged("full") or request.asked("expand") else _short(info))
        found.sort(key=lambda info: info["createdAt"], reverse=True)
        return self._page(request, found)

    def info(self, request: Request, kind: str, name: str, revision: str = "main") -> Answer:
        repository, _ = self.readable(request, kind, name)
        info = self._info(repository, repository.at(revision), request.flagged("blobs"))
        if wanted := request.query.get("expand"):
            info = {key: value for key, value in info.items() if key in ("_id", "id", *wanted)}
        return Answer.of_json(info)

    def check_access(self, request: Request, kind: str, name: str, write: str | None) -> Answer:
        if write:
            self.writable(request, kind, name)
        self.opened(request, kind, name)
        return Answer.of_json({})

    def _info(self, repository: Repository, commit: Commit, blobs: bool) -> dict[str, Any]:
        settings, files = repository.settings, commit.files
        card = cards.card_data(repository.location(files["README.md"]).read_bytes()) if "README.md" in files else None
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(files)]
        if blobs:
            for sibling in siblings:
                entry = files[sibling["rfilename"]]
                sibling.update(size=entry.size, blobId=entry.oid)
                if entry.sha256:
                    large = {"sha256": entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size}
                    sibling["lfs"] = large
        info: dict[str, Any] = {
            "_id": f"{repository.kind}:{repository.name}", "id": repository.name,
            "author": repository.name.split("/")[0], "sha": commit.sha, "lastModified": commit.date,
            "createdAt": settings["created_at"], "private": settings["private"], "gated": settings["gated"],
            "disabled": False, "downloads": 0, "likes": 0, "tags": cards.tags(card or {}, files, repository.kind),
            "siblings": siblings,
            "usedStorage": sum(entry.size for entry in files.values()),
        }  # fmt: skip
        if card:
            info["cardData"] = card
        if repository.kind == "model":
            info["modelId"] = repository.name
            info |= {key: card[key] for key in ("library_name", "pipeline_tag") if card and card.get(key)}
        return info

    # Files

    def tree(self, request: Request, kind: str, name: str, revision: str, path: str | None) -> Answer:
        repository, _ = self.readable(request, kind, name)
        commit = repository.at(revision)
        below = f"{path}/" if path else ""
        files = [file for file in commit.files if file.startswith(below)]
        if not files and path:
            raise entry_not_found(commit.sha, f"{path} does not exist on {revision!r}")
        inside = [file.removeprefix(below).split("/") for file in files]
        depths = [len(parts) if request.flagged("recursive") else 1 for parts in inside]
        found = {
            "/".join(parts[:end]) for parts, depth in zip(inside, depths, strict=True) for end in range(1, depth + 1)
        }
        paths = [below + one for one in sorted(found)]
        return self._page(request, paths, lambda one: self._described(request, repository, commit, one))

    def paths_info(self, request: Request, kind: str, name: str, revision: str) -> Answer:
        repository, _ = self.readable(request, kind, name)
        commit = repository.at(revision)
        if "json" in request.headers.get("content-type", ""):
            asked = request.json()
            paths, expand = asked["paths"], bool(asked.get("expand"))
        else:
            form = parse_qs(request.body.decode())
            paths, expand = form.get("paths", []), form.get("expand", [""])[0].lower() in ("1", "true")
        folders = {file.rsplit("/", depth)[0] for file in commit.files for depth in range(1, file.count("/") + 1)}
        known = [path.rstrip("/") for path in paths if path in commit.files or path.rstrip("/") in folders]
        return Answer.of_json([self._described(request, repository, commit, path, expand) for path in known])

    def _described(
        self, request: Request, repository: Repository, commit: Commit, path: str, expand: bool | None = None
    ) -> dict[str, Any]:
        if path in commit.files:
            entry = commit.files[path]
            made: dict[str, Any] = {"type": "file", "oid": entry.oid, "size": entry.size, "path": path}
            if entry.sha256:
                made["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size}
        else:
            inside = {name: entry for name, entry in commit.files.items() if name.startswith(f"{path}/")}
            made = {"type": "directory", "oid": git_tree_id(inside), "size": 0, "path": path}
        if expand if expand is not None else request.flagged("expand"):
            last = repository.last_change(commit, path)
            made["lastCommit"] = {"id": last.sha, "title": last.title, "date": last.date}
        return made

    # Commits and refs

    def preupload(self, request: Request, kind: str, name: str, revision: str) -> Answer:
        repository, _ = self.writable(request, kind, name, proposed=request.flagged("create_pr"))
        held = repository.at(revision).files
        answers = []
        for file in request.json()["files"]:
            mode = "lfs" if repository.is_large(file["path"], file["size"]) else "regular"
            entry = held.get(file["path"])
            oid = (entry.sha256 or entry.oid) if entry else None
            known = {"oid": oid} if oid else {}
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **known})
        return Answer.of_json({"files": answers, "commitOid": repository.resolve(revision)})

    def commit(self, request: Request, kind: str, name: str, revision: str) -> Answer:
        proposed = request.flagged("create_pr")
        repository, account = self.writable(request, kind, name, proposed)
        try:
            lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
            header = next(line["value"] for line in lines if line["key"] == "header")
        except (ValueError, KeyError, TypeError, StopIteration):
            raise Refusal(400, "The body of a commit is lines of JSON, one of them a header") from None
        ref = revision if revision.startswith("refs/pr/") else f"refs/heads/{revision}"
        head = repository.refs().get(ref)
        if head is None:
            repository.resolve(revision)
            raise Refusal(400, f"Invalid reference for a commit: {revision} is no branch")
        changes = dict(change for line in lines for change in _changes(repository, repository.at(head), line))
        if head != header.get("parentCommit", head):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        title, message = header.get("summary", ""), header.get("description", "")
        pull_request = None
        if proposed:
            pull_request = repository.open_pull_request(title, message, account.name, "open", base=head)
            ref = pull_request.revision
        onto = head if proposed else None
        sha = repository.commit(ref, changes, title, account.name, message, header.get("parentCommit"), onto)
        prefix = f"{self.url}/{'datasets/' if repository.kind == 'dataset' else ''}{name}"
        body = {"success": True, "commitOid": sha, "commitUrl": f"{prefix}/commit/{sha}", "hookOutput": ""}
        if pull_request:
            body["pullRequestUrl"] = f"{prefix}/discussions/{pull_request.num}"
        return Answer.of_json(body)

    def refs(self, request: Request, kind: str, name: str) -> Answer:
        repository, _ = self.readable(request, kind, name)
        made: dict[str, list[dict[str, str]]] = {"branches": [], "tags": [], "converts": [], "pullRequests": []}
        places = {"refs/heads/": "branches", "refs/tags/": "tags", "refs/pr/": "pullRequests"}
        for ref, sha in repository.refs().items():
            start = next(start for start in places if ref.startswith(start))
            made[places[start]].append({"name": ref.removeprefix(start), "ref": ref, "targetCommit": sha})
        if not request.flagged("include_prs"):
            del made["pullRequests"]
        return Answer.of_json(made)

    def commits(self, request: Request, kind: str, name: str, revision: str) -> Answer:
        repository, _ = self.readable(request, kind, name)
        return self._page(
            request, repository.history(revision),
            lambda commit: {
                "id": commit.sha, "title": commit.title, "message": commit.message, "date": commit.date,
                "authors": [{"user": commit.author}],
            },
        )  # fmt: skip

    def create_branch(self, request: Request, kind: str, name: str, branch: str) -> Answer:
        repository, _ = self.writable(request, kind, name)
        if f"refs/heads/{branch}" in repository.refs():
            raise Refusal(409, f"Reference already exists: refs/heads/{branch}")
        repository.set_ref(f"refs/heads/{branch}", repository.resolve(request.json().get("startingPoint") or "main"))
        return Answer.of_json({})

    def delete_branch(self, request: Request, kind: str, name: str, branch: str) -> Answer:
        return self._drop(request, kind, name, f"refs/heads/{branch}")

    def create_tag(self, request: Request, kind: str, name: str, revision: str) -> Answer:
        repository, _ = self.writable(request, kind, name)
        ref = f"refs/tags/{request.json()['tag']}"
        if ref in repository.refs():
            raise Refusal(409, f"Tag reference exists already: {ref}")
        repository.set_ref(ref, repository.resolve(revision))
        return Answer.of_json({})

    def delete_tag(self, request: Request, kind: str, name: str, tag: str) -> Answer:
        return self._drop(request, kind, name, f"refs/tags/{tag}")

    def _drop(self, request: Request, kind: str, name: str, ref: str) -> Answer:
        repository, _ = self.writable(request, kind, name)
        if ref not in repository.refs():
            raise Refusal(404, f"Reference does not exist: {ref}", "RevisionNotFound")
        repository.drop_ref(ref)
        return Answer.of_json({})

    def _page(
        self, request: Request, entries: Any, described: Callable[[Any], dict[str, Any]] | None = None
    ) -> Answer:  # fmt: skip
        """Return a page of a list, with a link to the next."""
        size = min(self.page_size, int(request.asked("limit") or self.page_size))
        start = int(request.asked("cursor") or 0)
        taken = list(islice(entries, start, start + size + 1))
        made = Answer.of_json([described(entry) if described else entry for entry in taken[:size]])
        if len(taken) > size:
            address = urlsplit(request.path)
            query = [pair for pair in parse_qsl(address.query) if pair[0] != "cursor"]
            following = urlencode([*query, ("cursor", str(start + size))])
            made.headers["Link"] = f'<{self.url}{address.path}?{following}>; rel="next"'
        return made


def _changes(repository: Repository, head: Commit, line: Mapping[str, Any]) -> Iterator[tuple[str, Entry | None]]:
    """Return what a line of a commit does to which paths."""
    key, value = line["key"], line["value"]
    path = value.get("path", "")
    if key != "header" and (not path or path.startswith("/") or ".." in path.split("/")):
        raise Refusal(400, f"Invalid path in a commit: {path!r}")
    if key == "file":
        encoded = value.get("encoding") == "base64"
        content = base64.b64decode(value["content"]) if encoded else value["content"].encode()
        if repository.is_large(path, len(content)):
            raise Refusal(400, f"{path} belongs to the large file storage; upload it there")
        if path == "README.md" and (errors := cards.validate(content.decode(errors="replace"))[0]):
            raise Refusal(400, "; ".join(errors))
        yield path, repository.keep_regular(content)
    elif key == "lfsFile":
        yield path, repository.large_entry(value["oid"])
    elif key == "deletedFile":
        if path not in head.files:
            raise entry_not_found(head.sha, f"A file with this name doesn't exist: {path}")
        yield path, None
    elif key == "deletedFolder":
        yield from ((file, None) for file in head.files if file.startswith(f"{path.rstrip('/')}/"))
    elif key != "header":
        raise Refusal(400, f"Unknown operation in a commit: {key}")


def _short(info: dict[str, Any]) -> dict[str, Any]:
    """Return what a list tells of a repository without being asked for more."""
    kept = ("_id", "id", "modelId", "author", "createdAt", "private", "gated", "downloads", "likes", "tags")
    return {key: value for key, value in info.items() if key in (*kept, "library_name", "pipeline_tag")}
