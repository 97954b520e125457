"""What has to hold before a run ships, as a YAML file says it."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from hf_peft_recipes.errors import UserError, did_you_mean
from hf_peft_recipes.metric_facts import DEFINITIONS
from hf_peft_recipes.spec import strict_yaml


@dataclass(frozen=True)
class Regression:
    """What must not get worse."""

    falls_at_most: float
    """By so much the share of right answers may fall."""
    dataset: str | None = None
    """A JSONL file of questions, from the policy's folder; None for those that ship."""
    max_new_tokens: int = 64
    """The longest answer."""


@dataclass(frozen=True)
class Policy:
    """What has to hold before a run ships."""

    metric: str
    """Of the run's held-out rows."""
    rises_by: float
    """By more than this the metric must be better than the base's; of a loss, lower."""
    regression: Regression | None
    """None asks for no regression set."""
    confidence: float = 0.95
    """Of the intervals of both differences, whose worse end decides."""
    min_rows: int = 30
    """Of held-out rows and of questions; intervals of fewer are too narrow (Efron and Tibshirani 1993, chapter 14)."""


def read_policy(path: str | Path) -> Policy:
    """Return the policy that a file holds. A share may be written `2%`.

    Args:
        path: of a YAML file.

    Raises:
        UserError: there is no such file, or a key or value that no policy has.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        near = [each.name for each in file.parent.glob("*.y*ml")] if file.parent.is_dir() else []
        raise UserError(f"policy {str(file)!r}: no such file{did_you_mean(file.name, near)}")
    found, _ = strict_yaml.load(file.read_text(encoding="utf-8"), str(file), "a policy")
    _check_keys(found, Policy, "", file)
    regression = found["regression"]
    if regression is not None:
        if not isinstance(regression, Mapping):
            raise UserError(f"{file}: regression is a mapping such as {{falls_at_most: 2%}}, or null")
        _check_keys(regression, Regression, "regression.", file)
        values = {
            **regression,
            "falls_at_most": _number(regression, "falls_at_most", "regression.", file),
            "max_new_tokens": _count(regression, "max_new_tokens", 64, "regression.", file),
        }
        if values.get("dataset") is not None:
            values["dataset"] = str(file.parent / Path(str(values["dataset"])).expanduser())
        regression = Regression(**values)
        if regression.falls_at_most < 0:
            raise UserError(f"{file}: regression.falls_at_most is {regression.falls_at_most}; 0 or more is wanted")
    if found["metric"] not in DEFINITIONS:
        raise UserError(f"{file}: unknown metric {found['metric']!r}{did_you_mean(str(found['metric']), DEFINITIONS)}")
    confidence = _number({"confidence": 0.95, **found}, "confidence", "", file)
    if not 0 < confidence < 1:
        raise UserError(f"{file}: confidence is {confidence}; a share between 0 and 1 is wanted, such as 95%")
    min_rows = _count(found, "min_rows", 30, "", file)
    return Policy(found["metric"], _number(found, "rises_by", "", file), regression, confidence, min_rows)


def _check_keys(found: Mapping[str, Any], kind: type[Any], prefix: str, file: Path) -> None:
    known = {each.name: each.default is MISSING for each in fields(kind)}
    for key in found:
        if key not in known:
            raise UserError(
                f"{file}: unknown key {prefix + key!r}{did_you_mean(key, known)} (keys: {', '.join(known)})"
            )
    for key, needed in known.items():
        if needed and key not in found:
            raise UserError(f"{file}: {prefix}{key} is missing")


def _number(found: Mapping[str, Any], key: str, prefix: str, file: Path) -> float:
    value = found[key]
    try:
        if isinstance(value, str) and value.endswith("%"):
            return float(value.removesuffix("%")) / 100
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    except ValueError:
        pass
    raise UserError(f"{file}: {prefix}{key} = {value!r}: a number, or a share such as 2%, is wanted")


def _count(found: Mapping[str, Any], key: str, otherwise: int, prefix: str, file: Path) -> int:
    value = found.get(key, otherwise)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{file}: {prefix}{key} = {value!r}: a whole number above 0 is wanted")
    return value
