"""Who gives feedback: programs, models, people and files, each by its name."""

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any

from hf_peft_recipes.errors import UserError, did_you_mean
from hf_peft_recipes.feedback.asking import Source
from hf_peft_recipes.feedback.sources.options import check_options
from hf_peft_recipes.scorers.arguments import import_function, require_permission
from hf_peft_recipes.spec.entries import is_of_hub

SOURCES = {
    "exact": "checker:exact",
    "file": "file:File",
    "format": "checker:format",
    "human": "human:Human",
    "json_schema": "checker:json_schema",
    "judge": "judge:Judge",
    "label": "checker:label",
    "numeric": "checker:numeric",
    "regex": "checker:regex",
    "reward_model": "reward_model:RewardModel",
    "self": "self_critique:SelfCritique",
    "unit_tests": "checker:unit_tests",
}
"""Name to what makes the source, below this folder: its keyword-only arguments are what can be chosen of it."""
ENTRY_POINT_GROUP = "hf_peft_recipes.feedback_sources"
_OF_WHO_RUNS = ("file", "human", "judge", "reward_model")
"""What reads files of this machine, or sends something to a server: no recipe of the Hub decides about that."""
_PERMISSION = "allow_code_execution"


def open_source(
    name: str,
    options: Mapping[str, Any],
    origin: str,
    callables: Mapping[str, Callable[..., Any]] = MappingProxyType({}),
    allow_code_execution: bool = False,
) -> Source:
    """Return the source of feedback `name`. Neither a model nor data are loaded for it.

    Args:
        name: one of `SOURCES`, an entry point of `ENTRY_POINT_GROUP`, or `module:function`: of one `Asked`, which
            returns a `Feedback`, a mapping of its fields, a score, or true or false. Instead of a function there may
            be a class of sources, which takes its options as keyword arguments.
        options: that are chosen of it.
        origin: where both were given, for messages; what a recipe of the Hub may not choose begins with `hub:`.
        callables: functions and sources that the caller has, by the path under which they are named.
        allow_code_execution: whether code of the model may be run.

    Raises:
        UserError: there is no such source, option, file or function; a value of another kind than its option.
    """
    if name in callables:
        return _own(name, callables[name], True, options, origin)
    foreign = None if ":" in name or name in SOURCES else _entry_point(name, origin)
    if is_of_hub(origin) and (name in _OF_WHO_RUNS or name not in SOURCES):
        raise UserError(
            f"source {name!r} (from {origin}) uses code, files or servers of this machine: who runs it does"
        )
    if foreign is not None:
        return _own(foreign.value, import_function(foreign.value, origin), False, options, origin)
    if name not in SOURCES:
        return _own(name, import_function(name, origin), False, options, origin)
    module, _, attribute = SOURCES[name].partition(":")
    return _opened(
        getattr(import_module(f"{__name__}.{module}"), attribute), name, options, origin, allow_code_execution
    )


def _own(path: str, found: Any, is_here: bool, options: Mapping[str, Any], origin: str) -> Source:
    from hf_peft_recipes.feedback.sources.function import FunctionHere, FunctionSource

    if inspect.isclass(found):
        return _opened(found, path, options, origin)
    if hasattr(found, "judge"):
        source: Source = found
        check_options(lambda: None, options, f"source {path!r} (from {origin})")
        return source
    kind = FunctionHere if is_here else FunctionSource

    def make(*, seconds: float = 30.0) -> Source:
        return kind(path, found, seconds=seconds)

    return _opened(make, path, options, origin)


def _opened(make: Any, name: str, options: Mapping[str, Any], origin: str, allowed: bool = False) -> Source:
    what = f"source {name!r} (from {origin})"
    check_options(make, options, what, (_PERMISSION,))
    given = dict(options)
    if _PERMISSION in inspect.signature(make).parameters:
        require_permission(what, allowed)
        given[_PERMISSION] = True
    try:
        source: Source = make(**given)
    except UserError as error:
        raise UserError(f"{what}: {error}") from None
    return source


def _entry_point(name: str, origin: str) -> EntryPoint | None:
    installed = {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}
    if name not in installed:
        known = [*SOURCES, *installed]
        hint = did_you_mean(name, known) or f"; there are {', '.join(sorted(known))}, or module:function"
        raise UserError(f"unknown source of feedback {name!r} (from {origin}){hint}")
    return installed[name]
