"""Python as text: calls, literals, and what every snippet states alike."""

import json
from collections.abc import Mapping
from typing import Any


def quantization_code(section: Mapping[str, Any]) -> str:
    """Return the statement that makes the quantization's config."""
    values = {key: value for key, value in section.items() if value is not None}
    # A text is quoted as JSON does it, with the marks that Python's formatters take.
    keywords = [f"{key}={literal(value) if isinstance(value, str) else repr(value)}" for key, value in values.items()]
    return call("quantization = BitsAndBytesConfig", keywords)


def dtype_of(recipe: Mapping[str, Any]) -> str:
    """Return the dtype that the base was loaded in."""
    return str((recipe.get("model") or {}).get("dtype") or "auto")


def call(function: str, arguments: list[str]) -> str:
    """Return the call on one line where there is room, else with an argument a line."""
    line = f"{function}({', '.join(arguments)})"
    if len(line) <= 100:
        return line
    return f"{function}(\n" + "".join(f"    {argument},\n" for argument in arguments) + ")"


def literal(text: str) -> str:
    """Return the text as Python writes it, with the marks that its formatters take."""
    return json.dumps(text, ensure_ascii=False)
