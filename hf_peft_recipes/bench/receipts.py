"""What a standard short run of a recipe left, shipped beside the recipe, and whether a run here leaves the same."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_peft_recipes import registry
from hf_peft_recipes.api import RunResult, resolve_recipe
from hf_peft_recipes.embedded import EMBEDDED, MODEL_DIR
from hf_peft_recipes.errors import ReceiptError, UserError
from hf_peft_recipes.fresh_process import last_words, run_verb
from hf_peft_recipes.measure.facts import commit_of

SCHEMA_VERSION = 1
STEPS = 12
OPTIONS: dict[str, Any] = {
    "seed": 42, "logging_steps": 1, "eval_strategy": "no", "save_strategy": "no", "report_to": "none", "certify": "off",
    "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 10,
}  # fmt: skip
"""Of a standard run: it begins as the whole demo does, whose warm-up is as long. The learning rate of a step must not
depend on how many follow: then a shorter run begins as a longer one does."""

LOSS_TOLERANCE, SAME_LOSS_TOLERANCE = 0.02, 0.001
"""Relative; the second where device and versions are the receipt's: there only the order of additions differs, which
the number of threads decides."""
GRADIENT_TOLERANCE = 0.05
REWARD_TOLERANCE = 0.2
"""Of a mean over all steps: of twelve with sixteen answers that are right or wrong, more than five standard errors."""
MEMORY_TOLERANCE = 0.10
"""Between machines of one kind; what libraries take differs with their versions."""

Receipt = dict[str, Any]


@dataclass(frozen=True)
class Check:
    """One thing that a receipt says, beside what was found here."""

    name: str
    expected: str
    found: str
    tolerance: str
    ok: bool


@dataclass(frozen=True)
class Verdict:
    """What became of a receipt on this machine."""

    name: str
    steps: int
    same_setting: bool
    """Whether device and versions are the receipt's."""
    checks: list[Check]
    speed_ratio: float | None
    """Tokens a second here over the receipt's; told, and never failed on."""
    receipt: Receipt
    found: Receipt

    @property
    def holds(self) -> bool:
        """Whether every check does."""
        return all(check.ok for check in self.checks)

    def shown(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {**asdict(self), "holds": self.holds}


def receipts_folder() -> Path:
    """Return the folder of the receipts that ship."""
    return registry.shipped_folder() / "receipts"


def read_receipt(name: str, folder: Path | None = None) -> Receipt:
    """Return the receipt of a shipped recipe.

    Args:
        name: of the recipe.
        folder: of the receipts; by default those that ship.

    Raises:
        UserError: an unknown recipe, one without a receipt, or a receipt that this software does not read.
    """
    source = registry.find(name)
    path = (folder or receipts_folder()) / f"{source.name}.json"
    shipped = source.path is not None and registry.shipped_folder() in source.path.parents
    if not shipped or not path.is_file():
        raise UserError(f"recipe {name!r} ({source.origin}) has no receipt to be held to")
    try:
        receipt: Receipt = json.loads(path.read_text(encoding="utf-8"))
        version = receipt["schema_version"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: no receipt") from None
    if version != SCHEMA_VERSION:
        raise UserError(f"{path}: schema version {version!r}; this software reads {SCHEMA_VERSION}")
    return receipt


def make_receipt(name: str, steps: int = STEPS) -> Receipt:
    """Return the receipt of a standard run, which trains in a fresh process: the embedded demo's first steps.

    Args:
        name: of the recipe.
        steps: optimizer steps.

    Raises:
        UserError: an unknown recipe.
        ReceiptError: the run failed.
    """
    with tempfile.TemporaryDirectory(prefix="receipt-") as scratch:
        folder = Path(scratch) / "run"
        options = {**OPTIONS, "max_steps": steps, **embedded_options(name), "output_dir": folder}
        finished = run_verb(
            "train", name, *(word for key, value in options.items() for word in (f"--{key}", str(value)))
        )
        if finished.returncode:
            raise ReceiptError(f"{name}: its standard run failed here: {last_words(finished)}")
        record = RunResult.read(folder).record
    measured, points = record["measured"], [point for point in record["loss_curve"] if "loss" in point]
    series, metrics = measured["series"], record["metrics"]
    # What the first step waits for is no matter of the recipe's.
    seconds, tokens = sum(series["seconds"][1:]), sum(series["tokens"][1:])
    return {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "steps": steps,
        "options": OPTIONS,
        "losses": [point["loss"] for point in points],
        **({"rewards": [point["reward"] for point in points]} if points and "reward" in points[0] else {}),
        "gradient_norms": [point["grad_norm"] for point in points],
        "tokens": series["tokens"],
        "supervised_tokens": series["supervised"],
        "parameters": record["parameters"],
        "peak_memory_bytes": {
            phase: cost["host_bytes"] if cost["allocated_bytes"] is None else cost["allocated_bytes"]
            for phase, cost in measured["phases"].items()
        },
        "tokens_per_second": tokens / seconds if seconds else None,
        "metrics": {key: metrics[key] for key in ("before", "after", "intervals", "rows", "task") if key in metrics},
        "hardware": record["hardware"],
        "versions": record["versions"],
        "commit": commit_of(Path(__file__).parent),
        "date": record["started"],
    }


def verify(name: str, steps: int | None = None) -> Verdict:
    """Return whether a run on this machine does what the recipe's receipt says.

    Args:
        name: of a recipe that ships.
        steps: to run, at most the receipt's; None for as many.

    Raises:
        UserError: no such recipe, no receipt of it, or more steps than it has.
        ReceiptError: the run failed.
    """
    receipt = read_receipt(name)
    wanted = receipt["steps"] if steps is None else steps
    if not 1 <= wanted <= receipt["steps"]:
        raise UserError(f"--steps {wanted}: the receipt of {name} has {receipt['steps']} steps")
    return compare(receipt, make_receipt(name, wanted))


def compare(receipt: Receipt, found: Receipt) -> Verdict:
    """Return how what was found differs from a receipt, over the steps that were run.

    Args:
        receipt: that ships.
        found: made now; of as many steps, or fewer.
    """
    steps, device = found["steps"], receipt["hardware"]["device"]
    here = found["hardware"]["device"]
    same = device == here and receipt["versions"] == found["versions"]
    tolerance = SAME_LOSS_TOLERANCE if same else LOSS_TOLERANCE
    checks = [
        _exact("trainable parameters", receipt["parameters"]["trainable"], found["parameters"]["trainable"]),
        _exact("all parameters", receipt["parameters"]["total"], found["parameters"]["total"]),
    ]
    # What a model samples depends on the last bit of a probability, and everything after on what it sampled.
    checks += (
        [_reward(receipt["rewards"][:steps], found["rewards"])]
        if "rewards" in receipt
        else [
            _exact("tokens of each step", receipt["tokens"][:steps], found["tokens"]),
            _exact("tokens with loss of each step", receipt["supervised_tokens"][:steps], found["supervised_tokens"]),
            _near("loss", receipt["losses"][:steps], found["losses"], tolerance),
            _near("gradient norm", receipt["gradient_norms"][:steps], found["gradient_norms"], GRADIENT_TOLERANCE),
        ]
    )
    # Answers have a length of their own at each step, and kernels are kept for each: memory grows with the steps.
    if device["kind"] == here["kind"] and ("rewards" not in receipt or steps == receipt["steps"]):
        checks.append(_memory(receipt["peak_memory_bytes"]["train"], found["peak_memory_bytes"]["train"]))
    rates = receipt["tokens_per_second"], found["tokens_per_second"]
    ratio = rates[1] / rates[0] if all(rates) else None
    return Verdict(receipt["name"], steps, same, checks, ratio, receipt, found)


def require(verdict: Verdict) -> None:
    """Raise a ReceiptError that names what differs, unless everything holds."""
    broken = [check for check in verdict.checks if not check.ok]
    if broken:
        told = "; ".join(
            f"{check.name} {check.found}, receipt {check.expected} ({check.tolerance})" for check in broken
        )
        raise ReceiptError(f"{verdict.name} does not do here what its receipt says: {told}")


def embedded_options(name: str) -> dict[str, Any]:
    """Return what makes a short run on the embedded model and data of a recipe that names its own, or its own batch."""
    resolved = resolve_recipe(name, []).resolved
    if resolved.value("model.name_or_path") in EMBEDDED and resolved.value("data.dataset") is None:
        return {}
    return {
        "model": MODEL_DIR, "dataset": "null", "split": "train", "evaluation.split": "null",
        "gradient_accumulation_steps": 1,
    }  # fmt: skip


def _exact(name: str, expected: Any, found: Any) -> Check:
    same = expected == found
    if not isinstance(expected, list):
        return Check(name, f"{expected:,}", f"{found:,}", "exactly", same)
    at = next((at for at, pair in enumerate(zip(expected, found, strict=False)) if pair[0] != pair[1]), None)
    if same or at is None:
        return Check(name, f"{sum(expected):,} in {len(expected)}", f"{sum(found):,} in {len(found)}", "exactly", same)
    return Check(name, f"{expected[at]:,} (step {at + 1})", f"{found[at]:,}", "exactly", same)


def _near(name: str, expected: Sequence[float], found: Sequence[float], tolerance: float) -> Check:
    """Return a check of the step that is furthest off; one that is no number is off by any measure."""
    told = f"within {tolerance:.1%}"
    if len(expected) != len(found):
        return Check(name, f"{len(expected)} steps", f"{len(found)} steps", told, False)
    off = [abs(now - then) / max(abs(then), 1e-12) for then, now in zip(expected, found, strict=True)]
    inside = [value <= tolerance for value in off]
    worst = inside.index(False) if not all(inside) else off.index(max(off))
    return Check(
        name, f"{expected[worst]:.5g} (step {worst + 1})", f"{found[worst]:.5g} ({off[worst]:+.2%})", told, all(inside)
    )


def _reward(expected: Sequence[float], found: Sequence[float]) -> Check:
    means = [sum(values) / len(values) for values in (expected, found)]
    ok = abs(means[0] - means[1]) <= REWARD_TOLERANCE
    return Check("mean reward", f"{means[0]:.3f}", f"{means[1]:.3f}", f"within {REWARD_TOLERANCE}", ok)


def _memory(expected: int, found: int) -> Check:
    told, gib = f"within {MEMORY_TOLERANCE:.0%}", 2**30
    off = found / expected - 1
    return Check(
        "peak memory of training", f"{expected / gib:.3f} GiB", f"{found / gib:.3f} GiB ({off:+.1%})", told,
        abs(off) <= MEMORY_TOLERANCE,
    )  # fmt: skip


def describe(receipt: Mapping[str, Any]) -> str:
    """Return one phrase: the machine, the versions and the commit that a receipt was made with, and when."""
    versions = receipt["versions"]
    told = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "peft", "trl"))
    return f"{receipt['hardware']['device']['name']}; {told}; {receipt['commit']}; {receipt['date'][:10]}"
