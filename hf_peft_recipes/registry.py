"""Where recipes come from: a name leads to one source, and a name that leads to two is an error.

Listing reads file names only; a source is opened when `read` is called.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from hf_peft_recipes.errors import UserError, did_you_mean

ENTRY_POINT_GROUP = "hf_peft_recipes.recipes"
HUB_PREFIX = "hub:"

RecipeFunction = TypeVar("RecipeFunction", bound=Callable[[], Mapping[str, Any]])


@dataclass(frozen=True)
class Source:
    """One recipe that can be read: `read()` returns YAML text, or the mapping that such a text would hold."""

    name: str
    origin: str
    read: Callable[[], str | Mapping[str, Any]]
    path: Path | None = None

    @property
    def is_part(self) -> bool:
        """Whether it is there to be extended, and no recipe by itself."""
        return self.path is not None and self.path.parent == shipped_folder() / "parts"


_decorated: dict[str, Source] = {}


def shipped_folder() -> Path:
    """Return the folder of the shipped recipes: inside the package in a wheel, beside it in a checkout."""
    inside = Path(str(files("hf_peft_recipes"))) / "recipes"
    return inside if inside.is_dir() else inside.parent.parent / "recipes"


def list_names(pattern: str = "*") -> list[str]:
    """Return the sorted names of all recipes whose name matches the shell `pattern`; parts of recipes are none.

    Raises:
        UserError: two sources claim one name.
    """
    return sorted(name for name, source in _sources().items() if fnmatch(name, pattern) and not source.is_part)


def find(name: str) -> Source:
    """Return the source of the recipe `name`: a registered name, the path of a YAML file, `hub:user/repo@revision`.

    Raises:
        UserError: nothing has that name, the file is missing, or two sources claim one name.
    """
    if name.startswith(HUB_PREFIX):
        return _from_hub(name)
    if looks_like_path(name):
        path = Path(name).expanduser()
        if not path.is_file():
            raise UserError(f"recipe file {name!r} does not exist")
        return _from_file(path, name)
    sources = _sources()
    if name not in sources:
        raise UserError(
            f"unknown recipe {name!r}{did_you_mean(name, sources)} (`hf-peft-recipes list` shows all {len(sources)})"
        )
    return sources[name]


def looks_like_path(name: str) -> bool:
    """Return whether `name` is meant as a file rather than as a registered name."""
    return name.endswith((".yaml", ".yml")) or "/" in name or "\\" in name


def register_recipe(function: RecipeFunction | None = None, *, name: str | None = None) -> Any:
    """Return the function unchanged, after registering it as a recipe; use it as a decorator.

    Args:
        function: takes no arguments and returns the mapping that the recipe's YAML file would hold. It is called
            when the recipe is asked for, never when recipes are listed.
        name: the recipe's name; the function's own name by default.

    Raises:
        UserError: the name is taken.
    """

    def register(function: RecipeFunction) -> RecipeFunction:
        recipe_name = name or function.__name__
        source = Source(recipe_name, f"{function.__module__}.{function.__qualname__}", function)
        taken = _sources().get(recipe_name)
        # A module that is reloaded registers the same function again.
        if taken is not None and taken.origin != source.origin:
            raise _duplicate(taken, source)
        _decorated[recipe_name] = source
        return function

    return register if function is None else register(function)


def _sources() -> dict[str, Source]:
    found: dict[str, Source] = {}
    for source in [*_shipped(shipped_folder()), *_entry_points(), *_decorated.values()]:
        if source.name in found:
            raise _duplicate(found[source.name], source)
        found[source.name] = source
    return found


@cache
def _shipped(folder: Path) -> tuple[Source, ...]:
    # One recipe is four look-ups; which files ship does not change while a process runs.
    return tuple(_from_file(path, f"recipes/{path.relative_to(folder)}") for path in sorted(folder.rglob("*.yaml")))


def _from_file(path: Path, origin: str) -> Source:
    def read() -> str:
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{origin}: not UTF-8 text (byte {error.start})") from None

    return Source(path.stem, origin, read, path)


def _from_hub(name: str) -> Source:
    """Return the recipe that a repository holds as `recipe.yaml`, its origin pinned to the commit that was found."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError, HTTPError

    repo_id, _, revision = name.removeprefix(HUB_PREFIX).partition("@")
    try:
        path = Path(hf_hub_download(repo_id, "recipe.yaml", revision=revision or None))
    except (HTTPError, HFValidationError, OSError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(f"recipe {name!r} cannot be had: {lines[0] if lines else type(error).__name__}") from None
    # The cache keeps the files of a revision in a folder that is named after its commit.
    origin = f"{HUB_PREFIX}{repo_id}@{path.parent.name}"
    return Source(repo_id.rsplit("/", 1)[-1], origin, _from_file(path, origin).read, path)


def _entry_points() -> list[Source]:
    # importlib.metadata costs more than everything else that `list` does, so it is imported only when some installed
    # distribution names the group at all.
    folders = (Path(entry) for entry in sys.path if entry)
    if not any(_declares(folder, folder.stat().st_mtime_ns) for folder in folders if folder.is_dir()):
        return []
    from importlib.metadata import entry_points

    def source(entry: Any) -> Source:
        return Source(entry.name, f"entry point {entry.value} of {entry.dist.name}", lambda: entry.load()())

    return [source(entry) for entry in entry_points(group=ENTRY_POINT_GROUP)]


@cache
def _declares(folder: Path, changed_ns: int) -> bool:
    """Return whether a distribution installed in a folder, as that was when it last changed, names the group."""
    declared = (text.read_text(encoding="utf-8", errors="replace") for text in folder.glob("*-info/entry_points.txt"))
    return any(ENTRY_POINT_GROUP in text for text in declared)


def _duplicate(first: Source, second: Source) -> UserError:
    return UserError(f"two recipes are named {first.name!r}: {first.origin} and {second.origin}; rename one")
