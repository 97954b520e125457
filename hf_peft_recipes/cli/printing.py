"""How results reach the terminal: JSON for programs, colour only where a person looks."""

import json
import sys
from typing import Any


def print_json(value: Any) -> None:
    """Print the value as one indented JSON document on standard output."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_rich(renderable: Any) -> None:
    """Print a rich table or text; as wide as needed where standard output is no terminal."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 120
    Console(width=width, highlight=False).print(renderable)
