"""What a user writes beside the name of a scorer or of a source of feedback, checked before anything is loaded."""

import importlib
import re
import sys
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from hf_peft_recipes.errors import UserError, did_you_mean
from hf_peft_recipes.scorers.json_schema import check_schema


def check_names(given: Iterable[str], known: Collection[str], what: str, kind: str = "argument") -> None:
    """Raise a UserError, with the nearest right one, where a name is not among those that are known.

    Args:
        given: as the user wrote them.
        known: that there are.
        what: they belong to, and where that was given: `scorer 'regex' (from --rewards)`.
        kind: of name.
    """
    for key in given:
        if key not in known:
            hint = did_you_mean(key, known) or (f"; it has {', '.join(known)}" if known else "; it has none")
            raise UserError(f"{what} has no {kind} {key!r}{hint}")


def check_contents(options: dict[str, Any], what: str) -> None:
    """Raise a UserError where a pattern or a schema among the options is broken."""
    for key, check in _CHECKED.items():
        if options.get(key) is not None:
            try:
                check(options[key])
            except ValueError as error:
                raise UserError(f"{key} {options[key]!r} of {what}: {error}") from None


def require_permission(what: str, is_allowed: bool) -> None:
    """Raise a UserError unless who runs this has allowed that code of a model is run.

    Args:
        what: would run it, and where that was given.
        is_allowed: by `--allow_code_execution`.
    """
    if not is_allowed:
        raise UserError(f"{what} runs code that the model writes; --allow_code_execution allows it")


def import_function(path: str, origin: str) -> Callable[..., Any]:
    """Return the function at `module:name`; modules of the working folder are found too, as Python itself does it.

    Raises:
        UserError: there is no such module or name, or what is there cannot be called.
    """
    module, _, name = path.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:
        # A module may fail in any way while it is imported.
        raise UserError(f"{path} (from {origin}) cannot be imported: {told(error)}") from None
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise UserError(f"{path} (from {origin}) is no function")
    function: Callable[..., Any] = found
    return function


def told(error: BaseException) -> str:
    """Return an error as one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")


def _check_pattern(pattern: Any) -> None:
    try:
        re.compile(str(pattern))
    except re.error as error:
        raise ValueError(str(error)) from None


_CHECKED: dict[str, Callable[[Any], None]] = {"pattern": _check_pattern, "schema": check_schema}
"""Options of which the content can be wrong, by name."""
