"""Pull requests and discussions."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from loopback_hub.api import ADDRESS, Api
from loopback_hub.refusals import Refusal
from loopback_hub.server import Answer, Request
from loopback_hub.store import PullRequest, Repository


class Discussions:
    """What `/api/…/discussions` answers. (A pull request that comes with a commit is opened by the commit.)"""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.routes: Sequence[tuple[str, str, Callable[..., Answer]]] = (
            ("GET", f"{ADDRESS}/discussions", self.list_all),
            ("POST", f"{ADDRESS}/discussions", self.open),
            ("GET", rf"{ADDRESS}/discussions/(?P<num>\d+)", self.show),
            ("POST", rf"{ADDRESS}/discussions/(?P<num>\d+)/(?P<action>status|merge)", self.change),
        )

    def list_all(self, request: Request, kind: str, name: str) -> Answer:
        repository, _ = self.api.readable(request, kind, name)
        found = [_discussion(repository, one) for one in reversed(repository.pull_requests())]
        return Answer.of_json({"discussions": found, "count": len(found), "start": 0})

    def open(self, request: Request, kind: str, name: str) -> Answer:
        repository, account = self.api.writable(request, kind, name, proposed=True)
        asked = request.json()
        proposed = bool(asked.get("pullRequest"))
        head = repository.resolve("main")
        status = "draft" if proposed else "open"
        opened = repository.open_pull_request(
            asked["title"], asked.get("description", ""), account.name, status, head, is_pull_request=proposed
        )
        if proposed:
            repository.set_ref(opened.revision, head)
        return Answer.of_json({"num": opened.num, "pullRequest": proposed})

    def show(self, request: Request, kind: str, name: str, num: str) -> Answer:
        repository, _ = self.api.readable(request, kind, name)
        return Answer.of_json(_discussion(repository, _numbered(repository, num)))

    def change(self, request: Request, kind: str, name: str, num: str, action: str) -> Answer:
        repository, account = self.api.writable(request, kind, name)
        changed = _numbered(repository, num)
        status = "merged" if action == "merge" else request.json().get("status", "open")
        if action == "merge":
            if not changed.is_pull_request or changed.status not in ("draft", "open"):
                raise Refusal(400, f"Discussion {num} is {changed.status} and cannot be merged")
            before, after = repository.at(changed.base).files, repository.at(changed.revision).files
            changes = {path: after.get(path) for path in {*before, *after} if before.get(path) != after.get(path)}
            title = f"{changed.title} (#{num})"
            changed = replace(changed, merged_as=repository.commit("refs/heads/main", changes, title, account.name))
        repository.keep_pull_request(replace(changed, status=status))
        event = {"id": f"{num}-{status}", "type": "status-change", "createdAt": changed.created_at,
                 "author": {"name": account.name}, "data": {"status": status}}  # fmt: skip
        return Answer.of_json({"newStatus": event})


def _numbered(repository: Repository, num: str) -> PullRequest:
    found = [one for one in repository.pull_requests() if one.num == int(num)]
    if not found:
        raise Refusal(404, f"Discussion {num} does not exist")
    return found[0]


def _discussion(repository: Repository, one: PullRequest) -> dict[str, Any]:
    return {
        "num": one.num, "title": one.title, "author": {"name": one.author}, "createdAt": one.created_at,
        "status": one.status, "isPullRequest": one.is_pull_request,
        "repo": {"name": repository.name, "type": repository.kind}, "events": [], "filesWithConflicts": [],
        "changes": {"base": "refs/heads/main", "mergeCommitId": one.merged_as}, "diff": "",
    }  # fmt: skip
