"""The record of a run, `result.json`: written atomically, read back, and held to a schema that ships."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_peft_recipes.errors import PreemptedError, RecipeError, UserError
from hf_peft_recipes.redaction import redact

SCHEMA_VERSION = 1
RESULT_FILE = "result.json"
RECIPE_FILE = "recipe.yaml"
SCHEMA_FILE = Path(__file__).parent / "result.schema.json"
PARTIAL = ".partial"
"""Ends the name of what is being written; whoever holds a run's folder may remove what a kill has left of it."""


def file_mode() -> int:
    """Return the permissions of a file that is made now: as the umask has it, and never writable for everybody."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        umask = int(status.partition("Umask:")[2].split()[0], 8)
    except (OSError, IndexError, ValueError):
        # Elsewhere it is only told by setting it, which another thread's files may fall into.
        umask = os.umask(0o077)
        os.umask(umask)
    return 0o664 & ~umask


def open_weights(folder: Path) -> None:
    """Let whoever may read the other files in `folder` read its weights: safetensors leaves them to their owner."""
    for path in folder.glob("*.safetensors"):
        path.chmod(file_mode())


def open_confided(path: str, flags: int) -> int:
    """Return the handle of a file with people's words, new ones for their owner and, if the umask lets it, the group.

    It is an `opener` of `open`.
    """
    return os.open(path, flags, 0o660)


def write_text(path: Path, text: str) -> None:
    """Write a file, without secrets, so that a reader sees the old content or the new one, never a part."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(redact(text))
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(file_mode())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_result(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record as `result.json` into the run's folder."""
    write_text(folder / RESULT_FILE, json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def ending(error: BaseException) -> dict[str, Any]:
    """Return what a record says of the error that ended its run: `status`, `exit_code`, `error`.

    Args:
        error: any; one of ours knows its status and exit code.
    """
    status, code = "failed", 130 if isinstance(error, KeyboardInterrupt) else 1
    if isinstance(error, (RecipeError, PreemptedError)):
        status, code = error.status, error.exit_code
    return {"status": status, "exit_code": code, "error": f"{type(error).__name__}: {error}"}


def read_result(folder: Path) -> dict[str, Any]:
    """Return the record of the run in `folder`.

    Raises:
        UserError: there is no run, or its record is broken or of a schema that this version does not read.
    """
    path = folder / RESULT_FILE
    if not path.is_file():
        raise UserError(f"{str(folder)!r} holds no run: there is no {RESULT_FILE}")
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: broken JSON: {error}") from None
    version = record.get("schema_version")
    if version != SCHEMA_VERSION:
        raise UserError(f"{path}: schema version {version!r}; this version of the software reads {SCHEMA_VERSION}")
    return record


def earlier_record(folder: Path) -> dict[str, Any]:
    """Return the record of a run that is to go on; empty where there is none, or it can be read no more.

    What a run goes on from are its checkpoints; a record that broke is no reason to lose it.
    """
    try:
        return read_result(folder)
    except UserError:
        return {}


def read_schema() -> dict[str, Any]:
    """Return the JSON schema of `result.json`."""
    schema: dict[str, Any] = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    return schema
