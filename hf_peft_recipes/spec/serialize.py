"""A resolved recipe as people and programs read it: the table of `show`, and the `recipe.yaml` of a run."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from hf_peft_recipes.spec import strict_yaml
from hf_peft_recipes.spec.compose import Rule
from hf_peft_recipes.spec.entries import SCALARS, SECTIONS, USERS_DECISIONS, Entry
from hf_peft_recipes.spec.resolve import ResolvedRecipe


def shown(recipe: ResolvedRecipe) -> dict[str, Any]:
    """Return `{name, objective, <section>: {<key>: {value, origin, reason}}}`, nested keys joined by dots."""
    table: dict[str, Any] = {"name": recipe.name, "objective": recipe.objective, "summary": recipe.summary}
    for key in SCALARS[1:]:
        if (entry := recipe.entries.get((key,))) is not None:
            table[key] = {"value": entry.value, "origin": entry.origin, "reason": entry.reason}
    for section in SECTIONS:
        rows = {
            ".".join(path[1:]): {"value": entry.value, "origin": entry.origin, "reason": entry.reason}
            for path, entry in recipe.entries.items()
            if path[0] == section and len(path) > 1
        }
        if rows:
            table[section] = rows
        elif recipe.entries.has_section(section):
            table[section] = None
    return table


def decision_words(recipe: ResolvedRecipe) -> list[str]:
    """Return the flags that hand on to a process what who runs the recipe has decided: it stands in no recipe file."""
    given = [(path, recipe.value(".".join(path))) for path in USERS_DECISIONS]
    return [word for path, value in given if value is not None for word in (f"--{'.'.join(path)}", json.dumps(value))]


def recipe_file(recipe: ResolvedRecipe) -> str:
    """Return the YAML text that repeats the run: every value, and which of them were chosen for the device.

    Those are chosen again when the file is run elsewhere, from the rules that the file carries along.
    """
    mapping: dict[str, Any] = {"summary": recipe.summary}
    scalars = [key for key in SCALARS if (key,) not in USERS_DECISIONS]
    mapping |= {key: value for key in scalars if (value := recipe.value(key)) is not None}
    for section in SECTIONS:
        if recipe.entries.has_section(section):
            mapping[section] = recipe.section(section)
    # Who runs the recipe decides on foreign code, every time anew.
    for path in USERS_DECISIONS:
        if len(path) > 1 and mapping.get(path[0]):
            mapping[path[0]].pop(path[1], None)
    if recipe.before_rules:
        mapping["chosen_for_device"] = {
            ".".join(path): {
                **({"otherwise": before.value} if before.origin else {}),
                "why": recipe.entries[path].reason,
            }
            for path, before in recipe.before_rules.items()
        }
    rules = [
        {"when": dict(rule.when), "set": kept, "why": rule.why}
        for rule in recipe.rules
        if (kept := {dotted: value for dotted, value in rule.set.items() if not _is_overruled(recipe, rule, dotted)})
    ]
    if rules:
        mapping["rules"] = rules
    return strict_yaml.dump(mapping)


def with_absolute_paths(recipe: ResolvedRecipe) -> ResolvedRecipe:
    """Return the recipe with local paths made absolute, so that its file works from any folder."""
    entries = type(recipe.entries)(recipe.entries)
    for path in (("model", "name_or_path"), ("data", "dataset")):
        if entry := entries.get(path):
            named = entry.value if isinstance(entry.value, list) else [entry.value]
            found = [absolute(name) for name in named]
            value = found if isinstance(entry.value, list) else found[0]
            entries[path] = Entry(value, entry.origin, entry.reason)
    return dataclasses.replace(recipe, entries=entries)


def absolute(name: Any) -> Any:
    """Return the full path of what exists here, any other name as it is."""
    path = Path(name).expanduser() if isinstance(name, (str, Path)) else None
    return str(path.resolve()) if path and path.exists() else name


def _is_overruled(recipe: ResolvedRecipe, rule: Rule, dotted: str) -> bool:
    """Whether a later file or the user gave the value, which the rule must not take back when the file is run again."""
    entry = recipe.entries.get(tuple(dotted.split(".")))
    return entry is not None and entry.layer > rule.layer
