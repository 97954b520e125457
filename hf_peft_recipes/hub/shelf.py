"""Recipes and runs that others have published: found, read, and a recipe of one's own put beside them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_peft_recipes.errors import HubError, UserError
from hf_peft_recipes.hub.address import parse_address
from hf_peft_recipes.hub.client import call, client
from hf_peft_recipes.hub.digests import is_same
from hf_peft_recipes.redaction import redact
from hf_peft_recipes.results import RECIPE_FILE

TAG = "hf-peft-recipes"
_SHOWN = ["cardData", "downloads", "private"]


@dataclass(frozen=True)
class Published:
    """One repository with a run or a recipe of this software."""

    repo_id: str
    base_model: str | None
    downloads: int
    private: bool


def list_published(pattern: str | None, author: str | None, limit: int = 100) -> list[Published]:
    """Return what the Hub holds under this software's tag, most downloaded first.

    Args:
        pattern: part of the name.
        author: user or group.
        limit: of the number of answers.

    Raises:
        HubError: the Hub was not reached.
    """
    found = call(
        "the Hub",
        lambda: list(client().list_models(filter=TAG, search=pattern, author=author, limit=limit, expand=_SHOWN)),
    )
    return [
        Published(model.id, _base_of(model), int(model.downloads or 0), bool(model.private))
        for model in sorted(found, key=lambda model: (-(model.downloads or 0), model.id))
    ]


def publish_recipe(text: str, summary: str, target: str, private: bool = False) -> str:
    """Publish the text of a recipe file as `recipe.yaml`, with a card that says how to run it; return its commit.

    Args:
        text: the YAML, already resolved once so that it is known to be right.
        summary: one line on what it is.
        target: `user/name`.
        private: whether only its owner sees it.

    Raises:
        UserError: no permission; a text with a secret or a path of this machine.
        HubError: the Hub was not reached.
    """
    from huggingface_hub import CommitOperationAdd, ModelCard, ModelCardData

    if redact(text) != text or str(Path.home()) in text:
        raise UserError("the recipe holds a secret or a path of this machine; it is not published")
    address = parse_address(target)
    data = ModelCardData(tags=[TAG, "recipe"], library_name="peft")
    command = f"hf-peft-recipes train hub:{address.repo_id}"
    body = (
        f"# {address.repo_id}\n\n{summary}\n\nA fine-tuning recipe. It is data, no code:\n\n```bash\n{command}\n```\n"
    )
    files = {RECIPE_FILE: text, "README.md": str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))}
    call(f"{address.repo_id}: create", lambda: client().create_repo(address.repo_id, private=private, exist_ok=True))

    def held() -> str | None:
        info = client().model_info(address.repo_id, files_metadata=True)
        remote = {file.rfilename: file for file in info.siblings or []}
        same = all(name in remote and _holds(content, remote[name]) for name, content in files.items())
        return str(info.sha) if same else None

    def commit() -> str:
        operations = [CommitOperationAdd(name, content.encode()) for name, content in files.items()]
        return str(client().create_commit(address.repo_id, operations, commit_message="Recipe").oid)

    already = call(address.repo_id, held)
    made = already or call(f"{address.repo_id}: commit", commit, held)
    if call(address.repo_id, held) is None:
        raise HubError(f"{address.repo_id} holds other bytes than were sent")
    return made


def _holds(content: str, remote: Any) -> bool:
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "file"
        path.write_bytes(content.encode())
        return is_same(path, remote)


def _base_of(model: Any) -> Any:
    base = getattr(model.card_data, "base_model", None)
    return base[0] if isinstance(base, list) and base else base
