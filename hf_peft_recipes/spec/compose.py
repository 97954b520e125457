"""From names to one merged recipe: ancestors flattened, methods and objectives joined, every value with its origin."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from hf_peft_recipes.errors import UserError, did_you_mean
from hf_peft_recipes.spec import strict_yaml
from hf_peft_recipes.spec.entries import (
    HUB_ORIGIN,
    SCALARS,
    SECTIONS,
    Entries,
    Entry,
    Path,
    is_of_hub,
    leaves,
    users_decision,
)

DEFAULT_METHOD, DEFAULT_OBJECTIVE = "lora", "sft"
_METHOD_SECTIONS = ("model", "quantization", "adapter", "scale")
_OBJECTIVE_SECTIONS = ("objective", "data", "evaluation", "rewards", "feedback")
_TOP_LEVEL = ("summary", "source", "extends", "scale", "rules", "remove", "chosen_for_device", *SCALARS, *SECTIONS)


@dataclass(frozen=True)
class Rule:
    """Values that a recipe takes where its conditions hold: on a kind of device, or beside other values."""

    when: Mapping[str, Any]
    set: Mapping[str, Any]
    why: str
    origin: str
    scalable: bool = False
    layer: int = 0

    @property
    def asks_device(self) -> bool:
        """Whether any condition is about the hardware."""
        return any(key.startswith("device.") for key in self.when)


@dataclass(frozen=True)
class Part:
    """One recipe file as it was read."""

    name: str
    origin: str
    raw: Mapping[str, Any]
    comments: Mapping[Path, str] = field(default_factory=dict)
    knows_method: bool = False
    """Whether the file or an ancestor of it says anything of a method."""

    @property
    def summary(self) -> str:
        """One line on what the recipe is."""
        return str(self.raw.get("summary", ""))

    @property
    def parents(self) -> list[str]:
        """The names that `extends` gives."""
        parents = self.raw.get("extends", [])
        return [parents] if isinstance(parents, str) else list(parents)

    @property
    def is_method(self) -> bool:
        """Whether the file itself says anything of a method."""
        return any(section in self.raw for section in _METHOD_SECTIONS)

    @property
    def is_objective(self) -> bool:
        """Whether the file itself says anything of an objective."""
        return any(section in self.raw for section in _OBJECTIVE_SECTIONS)


@dataclass
class Composition:
    """A merged recipe before rules and flags."""

    name: str
    parts: list[Part]
    entries: Entries
    rules: list[Rule]
    scale: dict[str, tuple[float, str]]
    """Training key to factor and the name of the method that states it."""

    @property
    def summary(self) -> str:
        """The summary of the part that was named last."""
        return self.parts[-1].summary if self.parts else ""


Lookup = Callable[[str], tuple[str, str, str | Mapping[str, Any]]]
"""Recipe name or path -> (name, origin, YAML text or mapping)."""


def load_part(name: str, lookup: Lookup) -> Part:
    """Return the one file that `name` leads to, read strictly.

    Raises:
        UserError: broken YAML, or a top-level key that no recipe has.
    """
    stem, origin, content = lookup(name)
    raw, comments = strict_yaml.load(content, origin) if isinstance(content, str) else (dict(content), {})
    for key, value in raw.items():
        if key not in _TOP_LEVEL:
            raise UserError(f"{origin}: unknown key {key!r}{did_you_mean(key, _TOP_LEVEL)}")
        if key in SECTIONS and value is not None and not isinstance(value, Mapping):
            raise UserError(f"{origin}: {key} is a mapping or null, not {value!r}")
    return Part(stem, origin, raw, comments)


def compose(name: str, lookup: Lookup, exact: bool = False) -> Composition:
    """Return the merged recipe that `name` stands for: `lora`, `qlora+sft`, a path, in any order of the joined names.

    Args:
        name: one name, or names joined by `+`; a method alone takes the objective `sft`, an objective alone `lora`.
        lookup: how a name is found.
        exact: keep the values that the `recipe.yaml` of an earlier run took for its device, instead of choosing again.

    Raises:
        UserError: an unknown name, a cycle, two methods or two objectives of different lines.
    """
    words = [word.strip() for word in name.split("+")] if not name.endswith((".yaml", ".yml")) else [name]
    if not all(words):
        raise UserError(f"recipe name {name!r}: a name is missing beside '+'")
    lines = [_line(word, lookup, ()) for word in words]
    if not any(part.is_method for line in lines for part in line):
        lines.append(_line(DEFAULT_METHOD, lookup, ()))
    if not any(part.is_objective for line in lines for part in line):
        lines.append(_line(DEFAULT_OBJECTIVE, lookup, ()))
    _refuse_rivals(lines, "method", _METHOD_SECTIONS)
    _refuse_rivals(lines, "objective", _OBJECTIVE_SECTIONS)
    # What an objective says comes first and a method adapts it, so that `a+b` is `b+a`.
    lines.sort(key=lambda line: (_has(line, _METHOD_SECTIONS), line[-1].name))
    # A name that another one extends adds nothing.
    lines = [line for line in lines if not any(line is not other and line[-1] in other[:-1] for other in lines)]
    parts = list({part.origin: part for line in lines for part in line}.values())
    return _merge(_canonical(lines), parts, exact)


def kind_of(name: str, lookup: Lookup) -> str:
    """Return whether a recipe is a `method`, an `objective`, or `complete`, by what it and its ancestors say.

    Args:
        name: one name.
        lookup: how a name is found.

    Raises:
        UserError: an unknown name, or a cycle.
    """
    line = _line(name, lookup, ())
    if _has(line, _METHOD_SECTIONS):
        return "complete" if _has(line, _OBJECTIVE_SECTIONS) else "method"
    return "objective"


def _canonical(lines: list[list[Part]]) -> str:
    """Return one name for all spellings: the method's, and the objective's beside it where that is not the default."""
    methods = [line[-1].name for line in lines if _has(line, _METHOD_SECTIONS)]
    objectives = [line[-1].name for line in lines if not _has(line, _METHOD_SECTIONS)]
    return "+".join([*methods, *(name for name in objectives if name != DEFAULT_OBJECTIVE)])


def _line(name: str, lookup: Lookup, below: tuple[str, ...]) -> list[Part]:
    """Return the file `name` with its ancestors before it, each once."""
    part = load_part(name, lookup)
    if part.origin in below:
        raise UserError(f"{part.origin}: extends itself by way of {' -> '.join([*below, part.origin])}")
    if is_of_hub(part.origin) and (local := next(filter(_is_local, part.parents), None)):
        raise UserError(
            f"{part.origin}: extends {local!r}, a file of this machine: a recipe of the Hub cannot name one"
        )
    parents = [_line(parent, lookup, (*below, part.origin)) for parent in part.parents]
    parents.sort(key=lambda line: _has(line, _METHOD_SECTIONS))
    ancestors = {ancestor.origin: ancestor for line in parents for ancestor in line}
    line = [*ancestors.values(), part]
    return [*ancestors.values(), replace(part, knows_method=_has(line, _METHOD_SECTIONS))]


def _has(line: list[Part], sections: tuple[str, ...]) -> bool:
    return any(section in part.raw for part in line for section in sections)


def _refuse_rivals(lines: list[list[Part]], kind: str, sections: tuple[str, ...]) -> None:
    rivals = [line for line in lines if _has(line, sections)]
    for first, second in pairwise(rivals):
        origins = ({part.origin for part in first}, {part.origin for part in second})
        if not (origins[0] <= origins[1] or origins[1] <= origins[0]):
            raise UserError(
                f"{first[-1].name!r} and {second[-1].name!r} are two {kind}s of different lines: a recipe joins one "
                f"method and one objective"
            )


def _merge(name: str, parts: list[Part], exact: bool) -> Composition:
    entries, rules, scale = Entries(), list[Rule](), dict[str, tuple[float, str]]()
    for layer, part in enumerate(parts):
        for dotted in part.raw.get("remove", []):
            if not entries.drop(tuple(dotted.split("."))):
                raise UserError(f"{part.origin}: remove: nothing to remove at {dotted!r}")
        # The rate of a file that knows its method is final; an objective alone states the one of full fine-tuning.
        scalable = not part.knows_method
        own = {key: part.raw[key] for key in (*SCALARS, *SECTIONS) if key in part.raw}
        for path, value in leaves(own):
            if value == {}:
                continue
            refuse_users_decision(path, part.origin)
            entries.put(path, Entry(value, part.origin, part.comments.get(path, ""), scalable, layer))
        for dotted, chosen in {} if exact else part.raw.get("chosen_for_device", {}).items():
            path = tuple(dotted.split("."))
            refuse_users_decision(path, part.origin)
            entries.drop(path)
            if "otherwise" in chosen:
                entries.put(path, Entry(chosen["otherwise"], part.origin, layer=layer))
        if not (exact and "chosen_for_device" in part.raw):
            rules += [_rule(rule, part, scalable, layer) for rule in part.raw.get("rules", [])]
        scale |= {key: (factor, part.name) for key, factor in part.raw.get("scale", {}).items()}
    return Composition(name, parts, entries, rules, scale)


def refuse_users_decision(path: Path, origin: str) -> None:
    """Raise a UserError where a recipe sets, or a rule of it would, what lets code run that is not ours."""
    if decision := users_decision(path):
        raise UserError(f"{origin}: {decision[-1]} is a decision of who runs the recipe: pass the flag")


def _is_local(name: str) -> bool:
    is_path = "/" in name or "\\" in name or name.endswith((".yaml", ".yml"))
    return is_path and not name.startswith(HUB_ORIGIN)


def _rule(raw: Any, part: Part, scalable: bool, layer: int) -> Rule:
    if not isinstance(raw, Mapping) or set(raw) != {"when", "set", "why"}:
        raise UserError(f"{part.origin}: a rule has exactly the keys when, set and why: {raw!r}")
    for dotted in raw["set"]:
        refuse_users_decision(tuple(str(dotted).split(".")), part.origin)
    return Rule(dict(raw["when"]), dict(raw["set"]), str(raw["why"]), part.origin, scalable, layer)
