"""Whether two contenders do the same work: same tokens, same labels, same losses and gradients, step by step."""

from collections.abc import Mapping
from typing import Any

LOSS_WITHIN, NORM_WITHIN = 1e-2, 2e-2
"""Relative. Seen between ours and TRL: 1e-4 and 6e-3; bfloat16 products in another order do not agree better."""

EXACT = ("digests", "tokens", "supervised_tokens")
"""What must be equal. The digest is of ids and labels in their order."""
CLOSE = {"losses": LOSS_WITHIN, "gradient_norms": NORM_WITHIN}


def compare(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the worst relative differences, and under `mismatches` what differs, in words; empty where all agrees.

    A figure that a framework does not tell is named under `not_told`, and is no mismatch.

    Args:
        ours: a record as contenders print it.
        theirs: another one of the same job.
    """
    mismatches, worst, untold = [], {}, []
    for name in (*EXACT, *CLOSE):
        left, right = ours[name], theirs.get(name)
        if right is None:
            untold.append(name)
            continue
        if len(left) != len(right):
            mismatches.append(f"{name}: {len(left)} steps and {len(right)}")
            continue
        pairs = list(zip(left, right, strict=True))
        if name in EXACT:
            wrong = [number for number, (one, other) in enumerate(pairs, 1) if one != other]
            told = "of another content" if name == "digests" else f"{left} and {right}"
            mismatches += [f"{name}: {told} at step {', '.join(map(str, wrong))}"] if wrong else []
            continue
        off = [abs(other - one) / abs(one) for one, other in pairs]
        worst[name] = max(off)
        # A NaN is within nothing, and `max` may pass over it.
        if not all(value <= CLOSE[name] for value in off):
            mismatches.append(f"{name}: {_short(left)} and {_short(right)}, allowed are {CLOSE[name]:.0%}")
    return {"worst": worst, "not_told": untold, "mismatches": mismatches}


def _short(numbers: list[float]) -> str:
    return "[" + ", ".join(f"{number:.4g}" for number in numbers) + "]"


def table(records: Mapping[str, Mapping[str, Any]], verdicts: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the check for people: a line a contender and step, then what differs.

    Args:
        records: of the contenders, by name.
        verdicts: as `compare` returns them, by the name of the one that is held against the first.
    """
    lines = [f"{'contender':<16} step {'tokens':>8} {'with loss':>10} {'loss':>10} {'gradient':>10}  rows"]
    for name, record in records.items():
        steps = zip(*(record.get(key) or ["?"] * len(record["losses"]) for key in _SHOWN), strict=False)
        lines += [
            f"{name:<16} {number:>4} {tokens:>8} {supervised:>10} {loss:>10.5f} {norm:>10.5f}  {digest}"
            for number, (tokens, supervised, loss, norm, digest) in enumerate(steps, 1)
        ]
    for name, verdict in verdicts.items():
        lines += [f"{name}: {told}" for told in verdict["mismatches"]] or [f"{name}: the same work"]
        lines += [f"{name}: does not tell its {', '.join(verdict['not_told'])}"] if verdict["not_told"] else []
    return "\n".join(lines)


_SHOWN = ("tokens", "supervised_tokens", "losses", "gradient_norms", "digests")
