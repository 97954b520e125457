"""From a merged recipe to the values of one run: rules, then flags, then the scale of the learning rate. Pure."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any

from hf_peft_recipes.errors import UserError, did_you_mean
from hf_peft_recipes.spec import strict_yaml
from hf_peft_recipes.spec.compose import Composition, Rule, refuse_users_decision
from hf_peft_recipes.spec.entries import GIVEN, SCALARS, SECTIONS, Entries, Entry, Path, leaves, rule_origin
from hf_peft_recipes.spec.objectives import OBJECTIVES, objective_facts
from hf_peft_recipes.spec.pairings import check_pairing
from hf_peft_recipes.spec.quantized import check_quantized
from hf_peft_recipes.spec.recompute import read_recompute
from hf_peft_recipes.spec.sections import (
    FLAG_ALIASES,
    OWNED_FIELDS,
    as_share,
    check_path,
    check_value,
    renamed,
    section_fields,
)
from hf_peft_recipes.spec.upstream import Field

_OPTIONS = (("feedback", "options"), ("feedback", "engine_options"))
"""What a source of feedback, or an engine, takes."""
Fields = Mapping[str, Mapping[str, Field]]


@dataclass(frozen=True)
class Override:
    """A value that who runs the recipe gives: a flag's words, or a Python keyword's value."""

    name: str
    """`learning_rate`, `data.columns.prompt`, `model` …"""
    value: Any
    origin: str
    is_text: bool = False
    """Whether the value still has to be read as a word of the command line."""


@dataclass(frozen=True)
class ResolvedRecipe:
    """A recipe with every value decided for one device."""

    name: str
    summary: str
    entries: Entries
    rules: tuple[Rule, ...] = ()
    """The rules that ask for the device, for the recipe file of the run."""
    before_rules: Mapping[Path, Entry] = field(default_factory=dict)
    """What stood where a rule about the device chose."""
    sources: tuple[str, ...] = ()
    """Where its files came from, those of the Hub with their commit."""

    @property
    def objective(self) -> str:
        """The objective's name."""
        return str(self.entries.value("objective"))

    @property
    def is_in_rounds(self) -> bool:
        """Whether the model answers its data itself, and learns from what is said of that."""
        return bool(self.value("feedback.rounds"))

    @property
    def shape(self) -> str:
        """The shape of its data's rows: its objective's, or prompts where the model answers them itself."""
        return "prompts" if self.is_in_rounds else objective_facts(self.objective).shape

    def section(self, name: str) -> dict[str, Any] | None:
        """Return one section as nested keyword arguments, None when the recipe has none or sets it to null."""
        return self.entries.section(name)

    def value(self, dotted: str) -> Any:
        """Return the value at a dotted path, None when it is not set."""
        return self.entries.value(*dotted.split("."))


def resolve(composition: Composition, overrides: Sequence[Override], facts: Mapping[str, Any]) -> ResolvedRecipe:
    """Return the recipe with all values decided.

    Args:
        composition: the merged recipe files.
        overrides: what the user gave, later ones over earlier ones.
        facts: `{"device.kind": …, "run.demo": …}`, matched by the rules; the hardware is never asked for here.

    Raises:
        UserError: an unknown key or a value of another type, with where it came from and the nearest right name.
    """
    entries = Entries(composition.entries)
    if entries.value("objective") is None:
        raise UserError(f"recipe {composition.name!r} has no objective")
    named = [override for override in overrides if override.name.rpartition(".")[2] in ("peft_type", "quant_method")]
    exchanged = _place(named, entries, section_fields(entries))
    if exchanged:
        _exchange_class(entries, exchanged)
    flags = _place(overrides, entries, section_fields(entries))
    fields = section_fields(_over(entries, flags))
    entries = Entries({renamed(path, fields): entry for path, entry in entries.items()})
    before: dict[Path, Entry] = {}
    for rule in composition.rules:
        if _holds(rule, _over(entries, flags), facts):
            _apply_rule(rule, entries, before, fields, {path[0] for path in exchanged})
    _apply_scale(composition, entries, flags)
    entries = _over(entries, flags)
    for path, entry in list(entries.items()):
        check_path(path, entry.origin, fields)
        if path not in flags:
            # However it came there: the parts are checked too, with words that name the file.
            refuse_users_decision(path, entry.origin)
        entry = entries[path] = replace(entry, value=as_share(path, entry.value))
        check_value(path, entry.value, entry.origin, fields)
    _check_whole(composition.name, entries)
    chosen = {path: entry for path, entry in before.items() if path not in flags}
    rules = tuple(rule for rule in composition.rules if rule.asks_device)
    sources = tuple(part.origin for part in composition.parts)
    return ResolvedRecipe(composition.name, composition.summary, entries, rules, chosen, sources)


def _exchange_class(entries: Entries, named: Mapping[Path, Entry]) -> None:
    """Put another type of adapter, or another who quantises, in the place of the recipe's.

    Of the section's keys those stay that the new class has too.
    """
    for path, entry in named.items():
        entries.put(path, entry)
    known = section_fields(entries)
    sections = {path[0] for path in named}
    for path in [path for path in entries if path[0] in sections and len(path) > 1 and path[1] not in known[path[0]]]:
        entries.drop(path)


def _over(entries: Entries, flags: Mapping[Path, Entry]) -> Entries:
    merged = Entries(entries)
    for path, entry in flags.items():
        merged.put(path, entry)
    return merged


def _place(overrides: Sequence[Override], entries: Entries, fields: Fields) -> dict[Path, Entry]:
    """Return the leaf that every override sets."""
    placed: dict[Path, Entry] = {}
    for override in overrides:
        path = renamed(_flag_path(override, fields, entries), fields)
        value = _read(override, path, fields)
        if isinstance(value, Mapping):
            placed |= {(*path, *below): Entry(leaf, override.origin, layer=GIVEN) for below, leaf in leaves(value)}
        else:
            placed[path] = Entry(value, override.origin, layer=GIVEN)
    return placed


def _flag_path(override: Override, fields: Fields, entries: Entries) -> Path:
    parts = tuple(override.name.split("."))
    # `model` is a flag and a section: a mapping is meant for the section.
    if override.name in FLAG_ALIASES and not isinstance(override.value, Mapping):
        return FLAG_ALIASES[override.name]
    if override.name == "adapter" and isinstance(override.value, str) and override.value != "null":
        return ("adapter", "adapter_name_or_path")
    if parts[0] in SECTIONS:
        if len(parts) == 1 and not isinstance(override.value, Mapping) and override.value not in (None, "null"):
            raise UserError(f"{override.origin} is a section: set a key of it, --{parts[0]}.KEY, or null")
        return parts
    homes = [section for section, keys in fields.items() if parts[0] in keys]
    homes = homes or [section for section in ("training",) if renamed(("training", parts[0]), fields)[1] != parts[0]]
    if len(homes) == 1:
        return (homes[0], *parts)
    if homes:
        options = " or ".join(f"--{section}.{override.name}" for section in homes)
        raise UserError(f"{override.origin} is ambiguous: use {options}")
    owned = [path for path in OWNED_FIELDS if parts[0] == path[1]]
    if owned:
        raise UserError(f"{override.origin} is not to be set here: {OWNED_FIELDS[owned[0]]}")
    missing = " (this recipe has no adapter)" if not fields["adapter"] else ""
    known = [*FLAG_ALIASES, *(name for keys in fields.values() for name in keys), *SECTIONS]
    raise UserError(f"unknown option {override.origin}{missing}{did_you_mean(parts[0], known)}")


def _read(override: Override, path: Path, fields: Fields) -> Any:
    if not override.is_text or not isinstance(override.value, str):
        return [strict_yaml.load_scalar(word) for word in override.value] if override.is_text else override.value
    known = fields.get(path[0], {}).get(path[1]) if len(path) > 1 else None
    is_text_field = known is not None and known.annotation.replace(" | None", "") == "str"
    is_column = path[:2] in (("data", "columns"), ("data", "format"))
    # A revision `1e5` and a column `2024` are names, not numbers.
    if (is_text_field or is_column) and override.value != "null":
        return override.value
    if path[:2] in _OPTIONS and len(path) > 2:
        return _option(override.value)
    return strict_yaml.load_scalar(override.value)


def _option(word: str) -> Any:
    """Return the value of an option of which only its taker knows the kind: a pattern like `[a-z]+` is no list."""
    try:
        value = strict_yaml.load_scalar(word)
    except UserError:
        return word
    return word if isinstance(value, list) else value


def _holds(rule: Rule, entries: Entries, facts: Mapping[str, Any]) -> bool:
    for key, wanted in rule.when.items():
        if key.split(".")[0] not in (*SECTIONS, *SCALARS) and key not in facts:
            raise UserError(f"{rule.origin}: rule on unknown fact {key!r}{did_you_mean(key, facts)}")
        found = facts[key] if key in facts else entries.value(*key.split("."))
        if not _is_wanted(found, wanted):
            return False
    return True


def _is_wanted(found: Any, wanted: Any) -> bool:
    """Whether a value is the wanted one, one of several, or, as `{not: …}` has it, none of these."""
    if isinstance(wanted, Mapping) and set(wanted) == {"not"}:
        return not _is_wanted(found, wanted["not"])
    return found in wanted if isinstance(wanted, list) else bool(found == wanted)


def _apply_rule(
    rule: Rule, entries: Entries, before: dict[Path, Entry], fields: Fields, exchanged: Collection[str]
) -> None:
    conditions = ", ".join(f"{key}: {_yaml_word(value)}" for key, value in rule.when.items())
    for dotted, value in rule.set.items():
        path = renamed(tuple(dotted.split(".")), fields)
        # A rule tunes what the recipe has: it gives no adapter to full fine-tuning and quantises nothing by itself.
        if path[0] in ("adapter", "quantization") and not entries.section(path[0]):
            continue
        # Nor does it say anything to a class that the user has put in the place of the one that it is about.
        if path[0] in exchanged and path[1] not in fields[path[0]]:
            continue
        standing = entries.get(path)
        if standing is not None and standing.layer > rule.layer:
            continue
        if rule.asks_device:
            before.setdefault(path, standing or Entry(None, ""))
        else:
            before.pop(path, None)
        # What was chosen for the run itself, rules about the device leave alone.
        layer = rule.layer if rule.asks_device else GIVEN - 1
        entries.put(path, Entry(value, rule_origin(rule.origin, conditions), rule.why, rule.scalable, layer))


def _yaml_word(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_yaml_word(word)}" for key, word in value.items())
    return {"True": "true", "False": "false", "None": "null"}.get(str(value), str(value))


def _apply_scale(composition: Composition, entries: Entries, flags: Mapping[Path, Entry]) -> None:
    for key, (factor, method) in composition.scale.items():
        path = ("training", key)
        entry = entries.get(path)
        if entry is None or not entry.scalable or path in flags:
            continue
        value = float(f"{entry.value * factor:.12g}")
        stated_by = PurePath(entry.origin).stem if entry.layer < GIVEN - 1 else entry.origin
        formula = f"{_rate(value)} = {_rate(entry.value)} ({stated_by}) × {factor:g} ({method})"
        reason = f"{formula}; {entry.reason}" if entry.reason else formula
        entries[path] = Entry(value, entry.origin, reason, False, entry.layer)


def _rate(value: float) -> str:
    """Return a rate as people write it: `2e-4`."""
    mantissa, _, exponent = f"{value:e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _check_whole(name: str, entries: Entries) -> None:
    if entries.section("quantization") and not entries.section("adapter"):
        origin = next(entry.origin for path, entry in entries.items() if path[0] == "quantization")
        raise UserError(
            f"recipe {name!r} quantises the base (from {origin}) but has no adapter to train; did you mean 'qlora'?"
        )
    if entries.section("rewards") and not objective_facts(objective := str(entries.value("objective"))).is_rewarded:
        origin = next(entry.origin for path, entry in entries.items() if path[0] == "rewards")
        rewarded = " and ".join(name for name, facts in OBJECTIVES.items() if facts.is_rewarded)
        raise UserError(f"rewards (from {origin}) are what {rewarded} learn from; {objective} has no use for them")
    if entries.section("adapter") and not entries.value("adapter", "peft_type"):
        raise UserError(f"recipe {name!r}: adapter.peft_type is missing (LORA, IA3 …)")
    check_quantized(name, entries)
    check_pairing(name, entries)
    _check_recompute(entries)
    _check_best(entries)


def _check_recompute(entries: Entries) -> None:
    """Raise a UserError where some layers are to be computed again by us, and all of them by upstream."""
    training, asked = entries.section("training") or {}, entries.get(("recompute",))
    checkpointing = any(training.get(name) for name in ("activation_checkpointing", "gradient_checkpointing"))
    if checkpointing and asked and read_recompute(asked.value):
        raise UserError(
            f"recompute = {asked.value} (from {asked.origin}) beside training.activation_checkpointing, "
            "which computes all blocks again: one of the two is wanted"
        )


def _check_best(entries: Entries) -> None:
    """Raise a UserError where the best checkpoint is to be kept, and would not be written or not be known."""

    def told(section: str, key: str) -> str:
        entry = entries.get((section, key)) or Entry(None, "upstream's default")
        return f"{section}.{key} = {_yaml_word(entry.value)} (from {entry.origin})"

    patience = entries.value("evaluation", "early_stopping_patience")
    if patience is not None and patience < 1:
        raise UserError(f"{told('evaluation', 'early_stopping_patience')}: at least 1 evaluation, or null, is wanted")
    if (entries.value("evaluation", "early_stopping_threshold") or 0) < 0:
        raise UserError(f"{told('evaluation', 'early_stopping_threshold')}: 0 or more is wanted")
    training = entries.section("training") or {}
    if not training.get("load_best_model_at_end"):
        if patience is not None:
            raise UserError(
                f"{told('evaluation', 'early_stopping_patience')} keeps the best checkpoint, which "
                f"{told('training', 'load_best_model_at_end')} does not; leave one of them out"
            )
        return
    evaluates, saves = training.get("eval_strategy"), training.get("save_strategy")
    if evaluates in (None, "no"):
        raise UserError(
            f"{told('training', 'eval_strategy')}: which checkpoint is the best one is known by evaluation alone; "
            "use --eval_strategy steps"
        )
    # Upstream lets saves be rarer than evaluations, and then goes back to a checkpoint that is not the best.
    aligned = saves == "epoch" or training.get("save_steps") == training.get("eval_steps")
    if saves != "best" and (saves != evaluates or not aligned):
        raise UserError(
            f"{told('training', 'save_strategy')}, {told('training', 'save_steps')}: the best checkpoint is there only "
            f"where one is written at each evaluation ({told('training', 'eval_steps')}); use --save_strategy best"
        )
