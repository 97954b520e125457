"""The push: asked for before training, staged and checked on disk, one commit, compared with what the Hub holds."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_peft_recipes import certificate, results
from hf_peft_recipes.card import Publication, make_card
from hf_peft_recipes.errors import CertificateError, HubError, RecipeError, UserError
from hf_peft_recipes.fingerprint import Fingerprint
from hf_peft_recipes.hub.address import parse_address
from hf_peft_recipes.hub.bases import Base, published_base
from hf_peft_recipes.hub.client import call, client
from hf_peft_recipes.hub.contents import (
    ADAPTER_FILES,
    CARD_FILE,
    check_staged,
    may_be_published,
    model_files,
    published_record,
    stage,
)  # fmt: skip
from hf_peft_recipes.hub.digests import is_same, sha256
from hf_peft_recipes.hub.pulling import download
from hf_peft_recipes.hub.request import PushRequest
from hf_peft_recipes.lineage import read_fingerprint

_MERGED = {"requantized": "quantized"}
"""Variant of a merge to the Hub's word for its relation to the base, where that is not `merge`."""


def reserve(request: PushRequest, location: str, expected: Callable[[], Fingerprint | None]) -> Base:
    """Return the base under its published name, after the repository was made. What can fail before training does.

    Args:
        request: what is asked for.
        location: the base's local folder or Hub id.
        expected: returns the base's fingerprint, where it has one.

    Raises:
        UserError: no token, no permission, a name that is somebody else's, a local base that nobody has named.
        HubError: the Hub was not reached.
    """
    address = parse_address(request.repo_id)
    user = _who_am_i()
    role = ((user.get("auth") or {}).get("accessToken") or {}).get("role")
    if role == "read":
        raise UserError(f"{address.repo_id}: your token may only read; make one with the right to write")
    mine = {str(user["name"]), *(str(group["name"]) for group in user.get("orgs") or [])}
    owner = address.repo_id.split("/")[0]
    if owner not in mine and role != "fineGrained":
        raise UserError(
            f"{address.repo_id}: you are {user['name']!r}, and {owner!r} is neither you nor one of your groups"
        )
    push_as = f"{address.repo_id}-base" if request.push_base else None
    base = published_base(location, expected(), request.base_model, push_as)
    _create(address.repo_id, request.private)
    if request.revision:
        call(
            f"{address.repo_id}: branch {request.revision}",
            lambda: client().create_branch(address.repo_id, branch=request.revision, exist_ok=True),
        )
    return base


def push(folder: Path, request: PushRequest) -> dict[str, Any]:
    """Publish what the run in `folder` made; return `{repo_id, url, commit, files, certificate, …}`.

    The same stands as `push` in the folder's record afterwards.

    Args:
        folder: of a finished run; it is only added to.
        request: where it goes.

    Raises:
        UserError: the run did not finish, or as `reserve` raises it.
        HubError: it did not go up; the message holds the command that goes on.
        CertificateError: what was published does not load as what was trained.
    """
    record = results.read_result(folder)
    if record["status"] != "done":
        raise UserError(
            f"the run in {str(folder)!r} is not done ({record['status']}); only what has finished is published"
        )
    if (record.get("certificate") or {}).get("status") == "failed":
        raise UserError(f"what the run in {str(folder)!r} saved does not load as what was trained; it is not published")
    model_files(folder)
    base = None
    try:
        base = reserve(request, str(record["base_model"]), lambda: read_fingerprint(folder))
        outcome = _publish(folder, request, base, record)
    except (HubError, UserError) as error:
        if base is None and isinstance(error, UserError):
            raise
        again = request.command(folder)
        record["push"] = {"status": "failed", "repo_id": request.repo_id, "error": str(error), "command": again}
        results.write_result(folder, record)
        raise HubError(f"{error}; the run is whole, go on with: {again}") from None
    record["push"] = outcome
    results.write_result(folder, record)
    failed = [check for check in outcome["certificate"]["checks"] if not check["ok"]]
    if failed:
        raise CertificateError(f"{outcome['url']}: {failed[0]['name']}: {failed[0]['detail']}")
    return outcome


def _publish(folder: Path, request: PushRequest, base: Base, record: Mapping[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=folder, prefix=".push-") as scratch:
        staged = Path(scratch)
        if base.pushed_from is not None:
            base = _push_base(base, request)
        shown = published_record(record, base, request.repo_id)
        stage(folder, staged, shown, base, request.repo_id)
        (staged / CARD_FILE).write_text(_card(staged, shown, base, request), encoding="utf-8")
        check_staged(staged, folder)
        sent = _Sending(request.repo_id, request.revision, {path.name: path for path in sorted(staged.iterdir())})
        commit, pull_request, already = sent.send(
            f"{record['recipe']}, trained with hf-peft-recipes", request.create_pr
        )
        if request.tag:
            _tag(request.repo_id, request.tag, commit)
        files = {name: sha256(path) for name, path in sent.files.items()}
    return {
        "status": "done",
        "repo_id": request.repo_id,
        "url": f"{client().endpoint}/{request.repo_id}",
        "commit": commit,
        "revision": request.revision or "main",
        "pull_request": pull_request,
        "tag": request.tag,
        "already_there": already,
        "base": {"name": base.name, "revision": base.revision, "license": base.license, "gated": base.gated},
        "files": files,
        "certificate": certify_published(request.repo_id, commit),
    }


@dataclass
class _Sending:
    """Files on their way into one branch of a repository."""

    repo_id: str
    revision: str | None
    files: Mapping[str, Path]

    def send(self, message: str, create_pr: bool) -> tuple[str, str | None, bool]:
        """Return the commit that holds the files, the pull request's URL, and whether they were there already."""
        if (head := self._held(self.revision)) is not None:
            return head, None, True
        if create_pr and (found := self._pull_request(message)) is not None:
            return (*found, True)

        def landed() -> tuple[str, str | None] | None:
            if create_pr:
                return self._pull_request(message)
            head = self._held(self.revision)
            return (head, None) if head else None

        commit, pull_request = call(f"{self.repo_id}: commit", lambda: self._commit(message, create_pr), landed)
        if self._held(f"refs/pr/{pull_request.rsplit('/', 1)[1]}" if pull_request else self.revision) is None:
            raise HubError(f"{self.repo_id} holds other bytes than were sent")
        return commit, pull_request, False

    def _commit(self, message: str, create_pr: bool) -> tuple[str, str | None]:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        head, remote = self._remote(self.revision)
        added = [
            CommitOperationAdd(name, str(path))
            for name, path in self.files.items()
            if name not in remote or not is_same(path, remote[name])
        ]
        stale = [CommitOperationDelete(name) for name in remote if may_be_published(name) and name not in self.files]
        made = client().create_commit(
            self.repo_id, [*added, *stale], commit_message=message, revision=self.revision,
            parent_commit=None if create_pr else head, create_pr=create_pr or None,
        )  # fmt: skip
        return made.oid, made.pr_url

    def _held(self, revision: str | None) -> str | None:
        """Return the commit at `revision` when it holds just these files, else None."""
        head, remote = self._remote(revision)
        stale = any(may_be_published(name) and name not in self.files for name in remote)
        same = all(name in remote and is_same(path, remote[name]) for name, path in self.files.items())
        return head if same and not stale else None

    def _remote(self, revision: str | None) -> tuple[str, dict[str, Any]]:
        """Return the head of a branch, and what it holds, by name."""

        def ask() -> Any:
            return client().model_info(self.repo_id, revision=revision, files_metadata=True)

        info = call(self.repo_id, ask)
        return info.sha, {file.rfilename: file for file in info.siblings or []}

    def _pull_request(self, message: str) -> tuple[str, str | None] | None:
        """Return the head and URL of an open pull request that holds just these files."""
        for discussion in client().get_repo_discussions(self.repo_id, discussion_status="open"):
            if discussion.is_pull_request and discussion.title == message:
                head = self._held(f"refs/pr/{discussion.num}")
                if head is not None:
                    return head, discussion.url
        return None


def _card(staged: Path, record: Mapping[str, Any], base: Base, request: PushRequest) -> str:
    recipe = staged / results.RECIPE_FILE
    variant, is_adapter = (record.get("merge") or {}).get("variant"), (staged / ADAPTER_FILES[0]).is_file()
    publication = Publication(
        repo_id=request.repo_id,
        base_model=base.name,
        base_revision=base.revision,
        license=base.license,
        gated=base.gated,
        relation="adapter" if is_adapter else _MERGED.get(variant, "merge") if variant else "finetune",
        datasets=_hub_datasets(record),
        private=request.private,
    )
    try:
        return make_card(record, recipe.read_text(encoding="utf-8"), publication)
    except ValueError as error:
        raise HubError(f"{request.repo_id}: {error}; nothing was sent") from None


def _hub_datasets(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the ids of the data sets that came from the Hub."""
    return tuple(record["data"].get("hub_ids", ()))


def _push_base(base: Base, request: PushRequest) -> Base:
    """Publish the local folder of the base, and return the base as it is then called."""
    folder = base.pushed_from
    assert folder is not None
    _create(base.name, request.private)
    files = {name: folder / name for name in model_files(folder)}
    card = folder / CARD_FILE
    if card.is_file():
        files[CARD_FILE] = card
    commit, _, _ = _Sending(base.name, None, files).send("Base model", create_pr=False)
    return Base(base.name, commit, base.license, base.gated)


def certify_published(repo_id: str, commit: str) -> dict[str, Any]:
    """Return the verdict of a fresh process on the files that the Hub sends, on the base that they name."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "published"
        try:
            download(repo_id, commit, folder)
            return certificate.certify_in_fresh_process(folder)
        except RecipeError as error:
            return {
                "status": "failed",
                "checks": [{"name": "comes back", "ok": False, "detail": str(error)}],
                "figures": {},
            }


def _tag(repo_id: str, tag: str, commit: str) -> None:
    refs = call(f"{repo_id}: tags", lambda: client().list_repo_refs(repo_id))
    standing = {ref.name: ref.target_commit for ref in refs.tags}
    if tag in standing and standing[tag] != commit:
        raise UserError(f"{repo_id}: tag {tag!r} stands on {standing[tag][:12]} already; tags are not moved")
    if tag not in standing:
        call(f"{repo_id}: tag {tag}", lambda: client().create_tag(repo_id, tag=tag, revision=commit, exist_ok=True))


def _who_am_i() -> dict[str, Any]:
    from huggingface_hub import get_token

    if get_token() is None:
        raise UserError("no token for the Hub: set HF_TOKEN or run `hf auth login`")
    user: dict[str, Any] = call("the Hub", lambda: client().whoami())
    return user


def _create(repo_id: str, private: bool) -> None:
    call(f"{repo_id}: create", lambda: client().create_repo(repo_id, private=private, exist_ok=True))
