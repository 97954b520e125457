"""What is chosen of a source, held to what there is to choose."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from hf_peft_recipes.errors import UserError
from hf_peft_recipes.scorers.arguments import check_contents, check_names

_KINDS: dict[Any, tuple[str, tuple[type, ...]]] = {
    bool: ("true or false", (bool,)),
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
    str: ("a text", (str,)),
    Mapping: ("a mapping", (Mapping,)),
    Sequence: ("a list", (list, tuple)),
}
"""What an argument is annotated with, to how that is said, and what is taken for it."""


def check_options(
    make: Callable[..., Any], options: Mapping[str, Any], what: str, kept_back: Sequence[str] = ()
) -> None:
    """Raise a UserError where an option is not among the keyword-only arguments of `make`, or is not of its kind.

    Args:
        make: returns the source.
        options: as the user gave them.
        what: is made, for messages.
        kept_back: arguments that are no options.
    """
    parameters = inspect.signature(make, eval_str=True).parameters.values()
    takes = {each.name: each for each in parameters if each.kind is each.KEYWORD_ONLY and each.name not in kept_back}
    check_names(options, list(takes), what, "option")
    missing = next((name for name, each in takes.items() if each.default is each.empty and name not in options), None)
    if missing is not None:
        raise UserError(f"{what} needs the option {missing!r}")
    for name, value in options.items():
        _check_kind(takes[name].annotation, name, value, what)
    check_contents(dict(options), what)


def _check_kind(annotation: Any, name: str, value: Any, what: str) -> None:
    is_union = get_origin(annotation) in (Union, UnionType)
    choices = [get_origin(each) or each for each in (get_args(annotation) if is_union else (annotation,))]
    known = [_KINDS[choice] for choice in choices if choice in _KINDS]
    if not known or (value is None and NoneType in choices):
        return
    if not any(isinstance(value, types) and (bool in types or not isinstance(value, bool)) for _, types in known):
        raise UserError(f"{name} {value!r} of {what}: {' or '.join(said for said, _ in known)} is wanted")
    if isinstance(value, (int, float)) and value < 0:
        raise UserError(f"{name} {value!r} of {what}: it cannot be less than 0")
