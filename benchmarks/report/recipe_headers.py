"""The receipt of a recipe in the head of its file, behind `# receipt:`."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from benchmarks.report.pieces import MIB, WIDTH
from benchmarks.report.provenance import read_provenance
from hf_peft_recipes.bench.receipts import Receipt, read_receipt
from hf_peft_recipes.errors import UserError

MARK = "# receipt: "
RECEIPTS = "receipts"


def headed(folder: Path) -> dict[Path, str]:
    """Return what the recipe files of a folder are to say now: each with its receipt, where it has one.

    Args:
        folder: of recipes, with their receipts below `receipts`.

    Raises:
        UserError: a receipt of another schema, without its provenance, or of no recipe.
    """
    recipes = {path.stem: path for path in sorted(folder.rglob("*.yaml"))}
    receipts = {path.stem: path for path in sorted((folder / RECEIPTS).glob("*.json"))}
    if strays := [path for name, path in receipts.items() if name not in recipes]:
        raise UserError(f"{strays[0]}: there is no recipe of that name below {folder}")
    return {
        path: with_receipt(path.read_text(encoding="utf-8"), _lines(receipts[name]) if name in receipts else [])
        for name, path in recipes.items()
    }


def with_receipt(text: str, lines: list[str]) -> str:
    """Return a recipe's text with these lines below its first one, the run command, in place of earlier ones.

    Args:
        text: of the recipe.
        lines: of its receipt; none takes what is there out.
    """
    first, *others = [line for line in text.splitlines() if not line.startswith(MARK.rstrip())]
    return "\n".join([first, *lines, *others]) + "\n"


def _lines(path: Path) -> list[str]:
    receipt = read_receipt(path.stem, path.parent)
    provenance = read_provenance(receipt, str(path))
    return textwrap.wrap(
        f"{describe(receipt)}; {provenance.phrase()}", WIDTH, initial_indent=MARK, subsequent_indent=MARK,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def describe(receipt: Receipt) -> str:
    """Return what a standard run did, in one phrase."""
    metrics, kind = receipt["metrics"], "rewards" if "rewards" in receipt else "losses"
    values, name = receipt[kind], {"rewards": "reward", "losses": "loss"}[kind]
    told = [f"{name} {values[0]:.3f} to {values[-1]:.3f} in {receipt['steps']} steps on the embedded demo"]
    told += [_metric(metrics)] if metrics.get("before") else []
    told += [f"{receipt['peak_memory_bytes']['train'] / MIB:,.0f} MiB at the peak of training"]
    told += [f"{receipt['tokens_per_second']:,.0f} tokens/s"] if receipt["tokens_per_second"] else []
    return ", ".join(told)


def _metric(metrics: dict[str, Any]) -> str:
    before, after = metrics["before"], metrics["after"]
    if "accuracy" in after:
        return f"held-out accuracy {before['accuracy']:.1%} to {after['accuracy']:.1%}".replace("%", " %")
    return f"held-out loss {before['loss']:.3f} to {after['loss']:.3f}"
