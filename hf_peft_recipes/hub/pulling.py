"""What comes down: files by their exact names, each compared with what the Hub says it holds, then moved into place."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from hf_peft_recipes.errors import HubError, UserError
from hf_peft_recipes.hub.address import Address
from hf_peft_recipes.hub.client import call, client
from hf_peft_recipes.hub.contents import may_be_published, model_files
from hf_peft_recipes.hub.digests import is_same
from hf_peft_recipes.pickles import WHY, is_pickle


def pull(address: Address, folder: Path) -> str:
    """Download a published run into `folder`, ready for every verb; return its commit.

    Args:
        address: the repository, at a branch, tag or commit.
        folder: must not exist, or be empty.

    Raises:
        UserError: the folder is in use; there is no such repository; it holds no adapter and no model.
        HubError: the Hub was not reached, or sent other bytes than it says it holds.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{str(folder)!r} is not empty; pull into another folder")
    return download(address.repo_id, address.revision, folder)


def download(repo_id: str, revision: str | None, folder: Path) -> str:
    """Download the files of a published run, all of them or none; return their commit. See `pull`."""
    info = call(repo_id, lambda: client().model_info(repo_id, revision=revision, files_metadata=True))
    wanted = {file.rfilename: file for file in info.siblings or [] if may_be_published(file.rfilename)}
    if not any(name.endswith(".safetensors") for name in wanted):
        pickled = [file.rfilename for file in info.siblings or [] if is_pickle(Path(file.rfilename))]
        told = f", only {pickled[0]}: {WHY}" if pickled else ""
        raise UserError(f"{repo_id} holds neither an adapter nor a model (*.safetensors){told}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    needed, free = sum(file.size or 0 for file in wanted.values()), shutil.disk_usage(folder.parent).free
    if needed > free:
        raise UserError(f"{repo_id} has {needed:,} bytes, and {str(folder.parent)!r} has room for {free:,}")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        arrived = Path(scratch) / "files"
        for name, remote in sorted(wanted.items()):
            _fetch(repo_id, info.sha, name, remote, arrived)
        shutil.rmtree(arrived / ".cache", ignore_errors=True)
        model_files(arrived)
        _check_names(arrived)
        if folder.is_dir():
            folder.rmdir()
        arrived.rename(folder)
    return str(info.sha)


def _fetch(repo_id: str, commit: str, name: str, remote: Any, target: Path) -> None:
    """Download one file; a second time when what came is not what the Hub says it holds."""
    from huggingface_hub import hf_hub_download

    for _ in range(2):
        path = Path(
            call(
                f"{repo_id}: {name}",
                lambda: hf_hub_download(repo_id, name, revision=commit, local_dir=target),
            )
        )
        if is_same(path, remote):
            return
        path.unlink()
    raise HubError(f"{repo_id}: {name} comes down with other bytes than the Hub says it holds; it was not kept")


def _check_names(folder: Path) -> None:
    """Raise a UserError when a config, or the index of a model, names a file outside of its folder."""
    for path in [*folder.glob("*config.json"), *folder.glob("*.index.json")]:
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path.name} is broken JSON: {error}") from None
        for key, value in _named_files(config):
            if isinstance(value, str) and _leads_out(value):
                raise UserError(f"{path.name} names {value!r} as its {key}, outside of its folder; nothing was kept")


def _named_files(config: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a config names as a file, and under which key."""
    if not isinstance(config, Mapping):
        return
    yield from ((key, value) for key, value in config.items() if key.endswith("_file"))
    if isinstance(weights := config.get("weight_map"), Mapping):
        yield from (("weight", value) for value in weights.values())


def _leads_out(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts
