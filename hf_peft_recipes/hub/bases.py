"""The base as a published adapter names it: a repository of the Hub at a commit, proved to hold what was trained on."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_peft_recipes import models
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.fingerprint import Fingerprint, Read, differences, fingerprint, local_reader
from hf_peft_recipes.hub.address import parse_address
from hf_peft_recipes.hub.client import call, client


@dataclass(frozen=True)
class Base:
    """What an adapter was trained on, or a model fine-tuned from."""

    name: str
    revision: str
    license: str | None
    gated: bool
    pushed_from: Path | None = None
    """The local folder that is still to be pushed as this base."""


def published_base(location: str, expected: Fingerprint | None, base_model: str | None, push_as: str | None) -> Base:
    """Return the base under its name on the Hub.

    Args:
        location: the local folder or the Hub id that was trained on.
        expected: its fingerprint, where one was taken.
        base_model: what the user says a local base is on the Hub, `user/name[@revision]`.
        push_as: the repository as which a local base is to be pushed along.

    Raises:
        UserError: a local base that nobody has named, or another one than was trained on.
    """
    is_local = Path(location).expanduser().is_dir() or location.startswith(("/", ".", "~"))
    is_local = is_local or (expected is not None and expected.revision is None)
    if base_model is None and is_local:
        if push_as is None:
            raise UserError(
                "the base is a folder of this machine, where nobody else finds it: --base_model user/name says which "
                "one it is on the Hub, --push_base publishes it too"
            )
        return Base(push_as, "main", _license_of(Path(location)), False, Path(location))
    named = parse_address(base_model or _with_revision(location, expected))
    info = call(f"base {named}", lambda: client().model_info(named.repo_id, revision=named.revision))
    found = Base(named.repo_id, info.sha, getattr(info.card_data, "license", None), bool(info.gated))
    if expected is not None and (base_model or expected.revision != info.sha):
        told = differences(expected, fingerprint(hub_reader(named.repo_id, info.sha), named.repo_id, info.sha))
        if told:
            raise UserError(f"{named} is not the base that was trained on: {'; '.join(told[:3])}")
    return found


def section_fingerprint(model_section: Mapping[str, Any] | None) -> Fingerprint:
    """Return the fingerprint of the base that a recipe's section names, from its files, here or on the Hub.

    Raises:
        UserError: it has no files to tell it by.
    """
    location = models.base_location(model_section)
    folder = Path(location).expanduser()
    if folder.is_dir():
        return fingerprint(local_reader(folder), folder.name)
    revision = (model_section or {}).get("revision")
    info = call(f"base {location}", lambda: client().model_info(location, revision=revision))
    return fingerprint(hub_reader(location, info.sha), location, info.sha)


def hub_reader(repo_id: str, revision: str) -> Read:
    """Return a function that reads parts of a repository's files without downloading them."""
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    def read(name: str, start: int, length: int) -> bytes:
        wanted = f"bytes={start}-" if length < 0 else f"bytes={start}-{start + length - 1}"

        def request() -> bytes | None:
            url = hf_hub_url(repo_id, name, revision=revision)
            response = get_session().get(url, headers={**build_hf_headers(), "Range": wanted})
            try:
                hf_raise_for_status(response)
            except EntryNotFoundError:
                return None
            content: bytes = response.content
            # A server that knows no ranges sends the whole file with status 200.
            return content if response.status_code == 206 else content[start : None if length < 0 else start + length]

        found = call(f"{repo_id}: {name}", request) if length else b""
        if found is None:
            raise FileNotFoundError(f"{repo_id} has no {name}")
        return found

    return read


def _with_revision(location: str, expected: Fingerprint | None) -> str:
    return f"{location}@{expected.revision}" if expected is not None and expected.revision else location


def _license_of(folder: Path) -> str | None:
    from huggingface_hub import ModelCard

    card = folder / "README.md"
    return getattr(ModelCard.load(card).data, "license", None) if card.is_file() else None
