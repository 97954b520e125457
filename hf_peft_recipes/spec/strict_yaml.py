"""One loader for files and flags: YAML 1.2 scalars, no code, no duplicate keys, and the comment beside each value.

PyYAML reads YAML 1.1, where `no` is a boolean and `2e-4` a string; both would change a recipe silently.
"""

import re
from typing import Any

import yaml

from hf_peft_recipes.errors import UserError

Path = tuple[str, ...]

# The core schema of YAML 1.2.2, section 10.3.2.
_SCALARS = (
    ("tag:yaml.org,2002:null", r"null|Null|NULL|~|", "nN~\0"),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
)


_MOST_NODES = 200_000
"""Keys and values of a document; the largest recipe has some hundred."""


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), ["" if c == "\0" else c for c in _first])


def _construct_int(loader: Any, node: Any) -> int:
    text = loader.construct_scalar(node)
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


def _construct_float(loader: Any, node: Any) -> float:
    return float(loader.construct_scalar(node).replace(".inf", "inf").replace(".nan", "nan").lower())


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)


def load(text: str, origin: str, what: str = "a recipe") -> tuple[dict[str, Any], dict[Path, str]]:
    """Return the mapping that `text` holds, and the comment that stands beside each value, by the value's path.

    Args:
        text: a YAML document whose top level is a mapping.
        origin: the file's path, for messages.
        what: the document is, for messages.

    Raises:
        UserError: broken YAML, a duplicate or non-string key, a tag, or a document that is no mapping.
    """
    node = _compose(text, origin)
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{origin}: {what} is a mapping of keys to values")
    comments: dict[Path, str] = {}
    _walk(node, (), text.splitlines(), comments, origin)
    return _construct(node, origin), comments


def load_scalar(text: str) -> Any:
    """Return the value that a command-line word stands for: `2e-4`, `true`, `null`, `[q_proj, v_proj]`, else the text.

    Raises:
        UserError: a flow list or mapping that is broken.
    """
    if text[:1] in ("[", "{"):
        return _construct(_compose(text, repr(text)), repr(text))
    for tag, pattern, _ in _SCALARS:
        if re.fullmatch(pattern, text):
            return _construct(yaml.ScalarNode(tag, text), repr(text))
    return text


def dump(mapping: dict[str, Any]) -> str:
    """Return `mapping` as YAML text that `load` reads back to the same values."""
    return yaml.dump(mapping, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _compose(text: str, origin: str) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        _check_size(node, origin)
        return node
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise UserError(f"{origin}:{line}: broken YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{origin}: broken YAML: {str(error).splitlines()[0]}") from None
    finally:
        loader.dispose()


def _check_size(node: Any, origin: str) -> None:
    """Raise a UserError where aliases make more of a text than can be meant, or a value a part of itself."""
    waiting, seen = [node], 0
    while waiting:
        inner = waiting.pop()
        if (seen := seen + 1) > _MOST_NODES:
            raise UserError(f"{origin}: its aliases (*name) come to more than {_MOST_NODES:,} values, or to no end")
        if isinstance(inner, yaml.MappingNode):
            waiting += [part for pair in inner.value for part in pair]
        elif isinstance(inner, yaml.SequenceNode):
            waiting += inner.value


def _construct(node: Any, origin: str) -> Any:
    try:
        return _Loader("").construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{origin}{line}: {error.problem}") from None


def _walk(node: Any, path: Path, lines: list[str], comments: dict[Path, str], origin: str) -> None:
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        key, line = key_node.value, key_node.start_mark.line + 1
        if key_node.tag != "tag:yaml.org,2002:str":
            raise UserError(f"{origin}:{line}: key {key!r} is not a plain name; put it in quotes")
        if key in seen:
            raise UserError(f"{origin}:{line}: key {key!r} stands twice (first on line {seen[key]})")
        seen[key] = line
        if isinstance(value_node, yaml.MappingNode):
            _walk(value_node, (*path, key), lines, comments, origin)
        elif value_node.end_mark.line < len(lines):
            rest = lines[value_node.end_mark.line][value_node.end_mark.column :]
            if (match := re.match(r"\s*#\s*(.*)", rest)) and value_node.start_mark.line == line - 1:
                comments[(*path, key)] = match.group(1).strip()
