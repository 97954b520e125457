"""Contents coming and going: downloads, and uploads to the large file storage on its own origin."""

import hashlib
import hmac
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from loopback_hub.api import Api
from loopback_hub.refusals import Refusal, entry_not_found
from loopback_hub.server import Answer, Request, ranged
from loopback_hub.store import Repository


class Transfers:
    """Downloads from the Hub, its Git LFS endpoints, and the storage behind them.

    Args:
        storage_url: the other origin.
        folder: where parts of uploads wait.
        part_bytes: large objects above it are uploaded in parts of this size.
    """

    def __init__(self, api: Api, storage_url: str, folder: Path, part_bytes: int) -> None:
        self.api, self.storage_url, self.folder, self.part_bytes = api, storage_url, folder, part_bytes
        self._key = secrets.token_bytes()
        folder.mkdir(parents=True, exist_ok=True)
        repository = r"/(?P<kind>datasets/)?(?P<name>[^/]+(?:/[^/]+)?)"
        self.routes: Sequence[tuple[str, str, Callable[..., Answer]]] = (
            ("GET", f"{repository}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", self.download),
            ("HEAD", f"{repository}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", self.download),
            ("POST", f"{repository}.git/info/lfs/objects/batch", self.batch),
            ("POST", f"{repository}.git/info/lfs/objects/verify", self.verify),
            ("POST", f"{repository}.git/info/lfs/objects/complete", self.complete),
        )
        self.storage_routes: Sequence[tuple[str, str, Callable[..., Answer]]] = (
            ("GET", "/objects/(?P<key>[^?]+)", self.stored),
            ("HEAD", "/objects/(?P<key>[^?]+)", self.stored),
            ("PUT", "/incoming/(?P<key>[^?]+)", self.store),
        )

    # The Hub's side

    def download(self, request: Request, kind: str | None, name: str, revision: str, path: str) -> Answer:
        repository = self.api.opened(request, kind.rstrip("/") if kind else "models", name)
        commit = repository.at(revision)
        entry = repository.entry(commit, path)
        headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{entry.oid}"', "Content-Type": "application/octet-stream"}
        if not entry.sha256:
            answer = ranged(repository.location(entry).read_bytes(), request.headers.get("range"))
            answer.headers.update(headers)
            return answer
        headers |= {"X-Linked-Etag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size)}
        headers["Location"] = self._signed("GET", f"objects/{repository.kind}s/{name}/{entry.sha256}")
        return Answer(302, f"Found. Redirecting to {headers['Location']}".encode(), headers)

    def batch(self, request: Request, kind: str | None, name: str) -> Answer:
        # The client leaves the ref out where it proposes a pull request, which needs no right to write to the branch.
        asked = request.json()
        repository, _ = self.api.writable(request, kind or "models", name, proposed="ref" not in asked)
        if asked.get("operation") != "upload":
            raise Refusal(400, "Only uploads go by the batch endpoint here")
        home = f"{self.api.url}/{kind or ''}{name}.git/info/lfs/objects"
        parts = "multipart" in asked.get("transfers", [])
        objects = [self._instructions(repository, home, one["oid"], one["size"], parts) for one in asked["objects"]]
        return Answer.of_json({"transfer": "basic", "objects": objects})

    def _instructions(self, repository: Repository, home: str, oid: str, size: int, parts: bool) -> dict[str, Any]:
        made: dict[str, Any] = {"oid": oid, "size": size, "authenticated": True}
        if repository.large_object(oid).is_file():
            return made
        key = f"incoming/{repository.kind}s/{repository.name}/{oid}"
        upload: dict[str, Any] = {"href": self._signed("PUT", key)}
        if parts and size > self.part_bytes:
            count = -(-size // self.part_bytes)
            urls = {f"{number:05d}": self._signed("PUT", f"{key}.{number:05d}") for number in range(1, count + 1)}
            signature = self._signature("POST", key)
            upload = {"href": f"{home}/complete?key={quote(key)}&signature={signature}"}
            upload["header"] = {"chunk_size": str(self.part_bytes), **urls}
        return {**made, "actions": {"upload": upload, "verify": {"href": f"{home}/verify"}}}

    def complete(self, request: Request, kind: str | None, name: str) -> Answer:
        key = request.asked("key") or ""
        self._check("POST", key, request)
        asked = request.json()
        parts = sorted(asked["parts"], key=lambda part: part["partNumber"])
        content = b""
        for part in parts:
            file = self._incoming(f"{key}.{part['partNumber']:05d}")
            if not file.is_file() or _etag(file.read_bytes()) != part["etag"]:
                raise Refusal(400, f"Part {part['partNumber']} of {asked['oid']} is missing or differs")
            content += file.read_bytes()
            file.unlink()
        self._incoming(key).write_bytes(content)
        return Answer.of_json({"success": True})

    def verify(self, request: Request, kind: str | None, name: str) -> Answer:
        repository, _ = self.api.writable(request, kind or "models", name, proposed=True)
        asked = request.json()
        incoming = self._incoming(f"incoming/{repository.kind}s/{name}/{asked['oid']}")
        if not incoming.is_file():
            if repository.large_object(asked["oid"]).is_file():
                return Answer.of_json({})
            raise Refusal(404, f"Object {asked['oid']} never arrived")
        content = incoming.read_bytes()
        if hashlib.sha256(content).hexdigest() != asked["oid"] or len(content) != asked["size"]:
            incoming.unlink()
            raise Refusal(422, f"What arrived as {asked['oid']} is something else")
        repository.keep_large(content)
        incoming.unlink()
        return Answer.of_json({})

    # The storage's side

    def store(self, request: Request, key: str) -> Answer:
        self._check("PUT", f"incoming/{key}", request)
        self._incoming(f"incoming/{key}").write_bytes(request.body)
        return Answer(200, headers={"ETag": _etag(request.body)})

    def stored(self, request: Request, key: str) -> Answer:
        self._check("GET", f"objects/{key}", request)
        kind, space, name, sha256 = key.split("/")
        repository = self.api.store.find(kind.removesuffix("s"), f"{space}/{name}")
        if repository is None or not repository.large_object(sha256).is_file():
            raise entry_not_found("", "NoSuchKey")
        content = repository.large_object(sha256).read_bytes()
        answer = ranged(content, request.headers.get("range"))
        answer.headers["ETag"] = _etag(content)
        return answer

    def _incoming(self, key: str) -> Path:
        return self.folder / hashlib.sha256(key.encode()).hexdigest()

    def _signed(self, method: str, key: str) -> str:
        return f"{self.storage_url}/{quote(key)}?signature={self._signature(method, key)}"

    def _signature(self, method: str, key: str) -> str:
        return hmac.new(self._key, f"{method} {key}".encode(), "sha256").hexdigest()

    def _check(self, method: str, key: str, request: Request) -> None:
        if not hmac.compare_digest(request.asked("signature") or "", self._signature(method, key)):
            raise Refusal(403, "SignatureDoesNotMatch")
        if "authorization" in request.headers:
            # S3 refuses two ways of authentication; a client that sends its token there gives it away.
            raise Refusal(400, "Only one auth mechanism allowed")


def _etag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'
