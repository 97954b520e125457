"""Token rows on disk: what was tokenised once is taken again, as long as nothing that made it has changed."""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from hf_peft_recipes.data.tokenization import Account

_VERSION = 2
"""Of the code that makes rows: whoever changes what a row looks like adds one."""
_ACCOUNT = "account.json"
ROWS = "rows-"
"""How the files of token rows begin: `datasets` puts what it makes of them into the same folder, under other names."""


def cache_folder() -> Path:
    """Return the folder for data of this package, below Hugging Face's own (`HF_HOME`)."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "hf_peft_recipes" / "data"


def cache_key(*material: Any) -> str:
    """Return a name for what is made of the material: of data, tokenizer, template and recipe."""
    text = json.dumps([_VERSION, *material], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def cached(key: str, make: Callable[[Path], Account]) -> tuple[Account, list[Path]]:
    """Return the account and the Arrow files under `key`, made now if they are not there.

    Args:
        key: as `cache_key` returns it.
        make: writes Arrow files, called `ROWS` and a number, into a folder, and returns the account of what it wrote.
    """
    folder = cache_folder() / key
    if not (folder / _ACCOUNT).is_file():
        # Beside it first: a run that is stopped half-way must leave nothing that looks whole.
        beside = folder.with_name(f"{key}.{os.getpid()}")
        beside.mkdir(parents=True, exist_ok=True)
        try:
            account = make(beside)
            (beside / _ACCOUNT).write_text(
                json.dumps({field.name: getattr(account, field.name) for field in fields(account)}), encoding="utf-8"
            )
            if not folder.exists():
                beside.rename(folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    read = json.loads((folder / _ACCOUNT).read_text(encoding="utf-8"))
    # JSON's keys are text.
    for name in ("lengths", "supervised"):
        read[name] = Counter({int(key): number for key, number in read[name].items()})
    read["reasons"] = Counter(read["reasons"])
    return Account(**{entry.name: read[entry.name] for entry in fields(Account)}), sorted(folder.glob(f"{ROWS}*.arrow"))
