"""Python as text: calls, literals, and what every snippet states alike."""

import json
from collections.abc import Mapping
from typing import Any

from hf_peft_recipes.spec.quantized import TORCHAO, method_of


def imports(section: Mapping[str, Any] | None, *classes: str) -> list[str]:
    """Return the lines that import classes of transformers, and what the quantization's config is made of.

    Args:
        section: `quantization` of a recipe; None where nothing is quantised.
        classes: in the order of an import.
    """
    if not section:
        return [f"from transformers import {', '.join(classes)}"]
    by_torchao = method_of(section) == TORCHAO
    config = "TorchAoConfig" if by_torchao else "BitsAndBytesConfig"
    # Functions stand behind classes, as tools sort them.
    names = sorted([*classes, config], key=lambda name: (name[0].islower(), name))
    first = [f"from torchao.quantization import {section['quant_type']}"] if by_torchao else []
    return [*first, f"from transformers import {', '.join(names)}"]


def quantization_code(section: Mapping[str, Any]) -> str:
    """Return the statement that makes the quantization's config."""
    values = {key: value for key, value in section.items() if value is not None}
    # A text is quoted as JSON does it, with the marks that Python's formatters take.
    keywords = [f"{key}={literal(value) if isinstance(value, str) else repr(value)}" for key, value in values.items()]
    if method_of(section) == TORCHAO:
        rest = [word for word in keywords if not word.startswith(("quant_method=", "quant_type="))]
        return call("quantization = TorchAoConfig", [f"{section['quant_type']}()", *rest])
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
