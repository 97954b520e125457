"""What goes up: files by their exact names, and of those that speak of this machine, copies that do not.

Optimizer states, checkpoints and `training_args.bin` (a pickle, which would hold a `hub_token`) are not on the list,
and what is not on the list does not go up.
"""

import json
import re
import shutil
import socket
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any

from hf_peft_recipes.certificate import STATEMENT_FILE
from hf_peft_recipes.errors import HubError, UserError
from hf_peft_recipes.fingerprint import FINGERPRINT_FILE, from_json
from hf_peft_recipes.hub.bases import Base
from hf_peft_recipes.redaction import redact
from hf_peft_recipes.results import RECIPE_FILE, RESULT_FILE
from hf_peft_recipes.spec import strict_yaml

CARD_FILE = "README.md"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")
_MODEL_FILE, _MODEL_INDEX = "model.safetensors", "model.safetensors.index.json"
_MODEL_FILES = ("config.json", "generation_config.json", _MODEL_INDEX, _MODEL_FILE)
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip
_MERGE_FILE = "merge.json"
_OWN_FILES = (
    RECIPE_FILE,
    RESULT_FILE,
    "loss.png",
    "rounds.png",
    _MERGE_FILE,
    STATEMENT_FILE,
    FINGERPRINT_FILE,
    CARD_FILE,
)
_NAMES = frozenset((*ADAPTER_FILES, *_MODEL_FILES, *_TOKENIZER_FILES, *_OWN_FILES))
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_WHOLE_PATH = re.compile(r"(?:/|~/|\.{1,2}/)[\w.@+=/-]+")
_PATH = re.compile(r"(?<![\w:/.<-])(?:~|\.{1,2})?(?:/[\w.@+=-]+){2,}/?")


def may_be_published(name: str) -> bool:
    """Whether a file of this name, at the root of the repository, is one of those that go up and come down."""
    return name in _NAMES or _SHARD.fullmatch(name) is not None


def model_files(folder: Path) -> list[str]:
    """Return the names of the files in `folder` that make up what was trained: adapter or model, and tokenizer.

    Raises:
        UserError: there is neither adapter nor model.
    """
    found = [name for name in (*ADAPTER_FILES, *_MODEL_FILES, *_TOKENIZER_FILES) if (folder / name).is_file()]
    if _MODEL_INDEX in found:
        index = json.loads((folder / _MODEL_INDEX).read_text(encoding="utf-8"))
        found += sorted(name for name in set(index["weight_map"].values()) if _SHARD.fullmatch(name))
    if ADAPTER_FILES[0] not in found and not any(name.endswith(".safetensors") for name in found):
        raise UserError(f"{str(folder)!r} holds neither an adapter nor a model (*.safetensors)")
    return found


def stage(folder: Path, target: Path, record: Mapping[str, Any], base: Base, repo_id: str) -> None:
    """Fill `target` with the run's files as they are to be published, all but the card.

    Args:
        folder: the run's.
        target: an empty folder.
        record: as `published_record` returns it.
        base: what the published adapter names as its base.
        repo_id: where it goes.

    Raises:
        UserError: the folder holds nothing that could be published.
    """
    for name in (*model_files(folder), "loss.png", "rounds.png", STATEMENT_FILE):
        source = folder / name
        if source.is_file():
            _link(source, target / name)
    if (target / ADAPTER_FILES[1]).is_file():
        config = json.loads((folder / ADAPTER_FILES[1]).read_text(encoding="utf-8"))
        config |= {"base_model_name_or_path": base.name, "revision": base.revision}
        _write(target / ADAPTER_FILES[1], _json(_cut_paths(config)))
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        if (target / name).is_file():
            config = json.loads((folder / name).read_text(encoding="utf-8"))
            config.pop("_name_or_path", None)
            _write(target / name, _json(_cut_paths(config)))
    if (folder / FINGERPRINT_FILE).is_file():
        found = json.loads(from_json((folder / FINGERPRINT_FILE).read_text(encoding="utf-8")).to_json())
        _write(target / FINGERPRINT_FILE, _json(found | {"name": base.name, "revision": base.revision}))
    if (folder / _MERGE_FILE).is_file():
        merge = json.loads((folder / _MERGE_FILE).read_text(encoding="utf-8"))
        _write(target / _MERGE_FILE, _json(_without_paths(merge | {"base_model": base.name})))
    if (folder / RECIPE_FILE).is_file():
        _write(target / RECIPE_FILE, published_recipe((folder / RECIPE_FILE).read_text(encoding="utf-8"), base))
    _write(target / RESULT_FILE, _json(record))


def published_record(record: Mapping[str, Any], base: Base, repo_id: str) -> dict[str, Any]:
    """Return a run's record as it may be read by everybody: no path, no host, no row of the data."""
    kept = {key: value for key, value in record.items() if key not in ("push", "output_dir", "base_model", "metrics")}
    metrics = {key: value for key, value in record["metrics"].items() if key != "examples"}
    named = {"output_dir": repo_id, "base_model": base.name, "base_revision": base.revision, "metrics": metrics}
    if feedback := record.get("feedback"):
        named["feedback"] = {**feedback, "rounds": [_without_words(account) for account in feedback["rounds"]]}
    return dict(_without_paths(kept | named))


def _without_words(account: Mapping[str, Any]) -> dict[str, Any]:
    """Return the account of a round without what a source said when it failed, which may quote rows."""
    failures = sum(account["failures"].values())
    return {**account, "failures": {"answers without feedback": failures} if failures else {}}


def published_recipe(text: str, base: Base) -> str:
    """Return a run's recipe with its base as it is called on the Hub, and without paths of this machine."""
    recipe, _ = strict_yaml.load(text, RECIPE_FILE)
    model = {**(recipe.get("model") or {}), "name_or_path": base.name, "revision": base.revision}
    return strict_yaml.dump(_cut_paths({**recipe, "model": model}))


def check_staged(folder: Path, run_folder: Path) -> None:
    """Raise a HubError when a text among the staged files still names this machine or holds a secret."""
    private = {str(Path.home()), str(Path.cwd()), str(run_folder.absolute()), str(run_folder.resolve())}
    host = socket.gethostname()
    if re.search(r"[\d-]", host):
        private.add(host)
    private = {word for word in private if len(word) > 4}
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".png", ".model") or path.name == "tokenizer.json":
            continue
        text = path.read_text(encoding="utf-8")
        found = next((word for word in private if word in text), None)
        if found or redact(text) != text:
            raise HubError(
                f"{path.name} would publish {'a name of this machine' if found else 'a secret'}; nothing was sent"
            )


def _mapped(value: Any, text: Callable[[str], str]) -> Any:
    """Return a nested value with `text` applied to all its texts."""
    if isinstance(value, str):
        return text(value)
    if isinstance(value, Mapping):
        return {text(str(key)): _mapped(item, text) for key, item in value.items()}
    return [_mapped(item, text) for item in value] if isinstance(value, (list, tuple)) else value


def _without_paths(value: Any) -> Any:
    """Return a record with the local paths inside its texts cut down to their last parts."""
    return _mapped(value, lambda text: redact(_PATH.sub(lambda match: PurePath(match.group()).name, text)))


def _cut_paths(value: Any) -> Any:
    """Return settings with those values cut down that are, as a whole, a local path; templates keep every character."""
    return _mapped(value, lambda text: PurePath(text).name if _WHOLE_PATH.fullmatch(text) else text)


def _link(source: Path, target: Path) -> None:
    """Put a file into the staging folder without copying gigabytes where the file system allows it."""
    try:
        target.hardlink_to(source.resolve())
    except OSError:
        shutil.copyfile(source, target)


def _write(path: Path, text: str) -> None:
    # What stands there may be a link to the run's own file.
    path.unlink(missing_ok=True)
    path.write_text(text, encoding="utf-8")


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=False) + "\n"
