"""Result files that hold one record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hf_peft_recipes.bench.cell import SCHEMA_VERSION
from hf_peft_recipes.errors import UserError


def read_record(path: Path) -> dict[str, Any] | None:
    """Return the record of a file; None where there is no file.

    Args:
        path: of the file.

    Raises:
        UserError: it is no record, or one of another schema.
    """
    if not path.is_file():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = record.get("schema_version")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: no result: {error}") from None
    if version != SCHEMA_VERSION:
        raise UserError(f"{path}: schema version {version!r}; this version of the software reads {SCHEMA_VERSION}")
    return record
