"""Scorers as a recipe names them: by name, by name with arguments, or as a function of the user's own."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from hf_peft_recipes.errors import UserError, did_you_mean
from hf_peft_recipes.scorers import SCORERS
from hf_peft_recipes.scorers.arguments import check_contents, check_names, import_function, require_permission

_IN_PLACE_OF_REFERENCE = {"format": "pattern", "json_schema": "schema", "length": "wanted", "regex": "pattern"}
"""Scorer to the argument with which it needs no reference; all others need one."""
_GIVEN = ("tokens", "allow_code_execution")
"""Arguments that a recipe does not set: who calls a scorer knows them."""


@dataclass(frozen=True)
class ConfiguredScorer:
    """One scorer with its arguments, or one function of the user's."""

    name: str
    """Its name among the others, in metrics and logs."""
    score: Callable[..., float] | None = field(default=None, compare=False)
    """`(answer, reference, tokens=…)` -> a number; None where there is a function for many at once."""
    function: Callable[..., Any] | None = field(default=None, compare=False)
    """The user's: TRL's keyword arguments `prompts`, `completions` … -> a list of numbers."""
    needs_reference: bool = True


def read_scorers(
    entries: Any, origin: str, callables: Mapping[str, Callable[..., Any]], allow_code_execution: bool = False
) -> list[ConfiguredScorer]:
    """Return the scorers that a recipe names, each with a name of its own.

    Args:
        entries: names, `module:function` paths, mappings of `scorer`, its arguments and maybe `name`; or one of these.
        origin: where they were given, for messages.
        callables: functions that the caller has, by the path under which they are among the entries.
        allow_code_execution: whether scorers that run an answer's code may.

    Raises:
        UserError: an unknown scorer or argument, a function that cannot be imported, a name that stands twice.
    """
    found = [
        _scorer(entry, origin, callables, allow_code_execution)
        for entry in (entries if isinstance(entries, (list, tuple)) else [entries])
    ]
    names = [scorer.name for scorer in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"{twice!r} stands twice (from {origin}): give each its `name`")
    return found


def _scorer(
    entry: Any, origin: str, callables: Mapping[str, Callable[..., Any]], allow_code_execution: bool
) -> ConfiguredScorer:
    options = dict(entry) if isinstance(entry, Mapping) else {"scorer": entry}
    word = options.pop("scorer", None)
    if not isinstance(word, str):
        raise UserError(
            f"{entry!r} (from {origin}) names no scorer: {{scorer: regex, pattern: …}} is how it is written"
        )
    name = str(options.pop("name", re.split(r"[:.]", word)[-1].strip("<>")))
    if word in callables or ":" in word:
        if options:
            raise UserError(f"{word} (from {origin}) takes no {next(iter(options))!r}: only scorers have arguments")
        return ConfiguredScorer(
            name, function=callables.get(word) or import_function(word, origin), needs_reference=False
        )
    if word not in SCORERS:
        hint = did_you_mean(word, SCORERS) or f"; there are {', '.join(SCORERS)}, or module:function"
        raise UserError(f"unknown scorer {word!r} (from {origin}){hint}")
    return _with_arguments(word, name, options, origin, allow_code_execution)


def _with_arguments(
    word: str, name: str, options: dict[str, Any], origin: str, allow_code_execution: bool
) -> ConfiguredScorer:
    scorer = SCORERS[word]
    parameters = inspect.signature(scorer).parameters
    takes = [key for key, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY]
    check_names(options, [key for key in takes if key not in _GIVEN], f"scorer {word!r} (from {origin})")
    check_contents(options, f"scorer {word!r} (from {origin})")
    if "allow_code_execution" in takes:
        require_permission(f"{word} (from {origin})", allow_code_execution)
        options["allow_code_execution"] = True
    instead = _IN_PLACE_OF_REFERENCE.get(word)
    needs = instead is None or options.get(instead, parameters[instead].default) is None
    bound = partial(scorer, **options)
    return ConfiguredScorer(name, bound if "tokens" in takes else _without_tokens(bound), needs_reference=needs)


def _without_tokens(scorer: Callable[..., float]) -> Callable[..., float]:
    def scored(answer: str, reference: str, tokens: int | None = None) -> float:
        return scorer(answer, reference)

    return scored


def paths_of(given: Sequence[Any]) -> tuple[list[Any], dict[str, Callable[..., Any]]]:
    """Return entries in which functions stand as `module:name`, and those functions by that path.

    Args:
        given: entries as `read_scorers` takes them, functions among them.
    """
    functions = {_path_of(item): item for item in given if callable(item)}
    return [_path_of(item) if callable(item) else item for item in given], functions


def _path_of(function: Any) -> str:
    named = function
    while isinstance(named, partial):
        named = named.func
    name = getattr(named, "__qualname__", type(named).__qualname__)
    return f"{getattr(named, '__module__', type(named).__module__)}:{name}"
