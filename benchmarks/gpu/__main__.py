"""The command line of the suite, see `benchmarks.gpu`."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import benchmarks.gpu
from benchmarks.gpu import ablation, peers, planned, profiles, smoke, throughput
from benchmarks.gpu.part import Ledger, Outcome, Part, run_part
from benchmarks.gpu.place import Place
from hf_peft_recipes.bench.suite import Line, require_quiet
from hf_peft_recipes.device import Device, detect_device
from hf_peft_recipes.errors import RecipeError, UserError
from hf_peft_recipes.measure.facts import commit_of

PARTS: dict[str, Part] = {
    "smoke": smoke.PART,
    "plan": planned.PART,
    "recipes": throughput.PART,
    "peers": peers.PART,
    "profile": profiles.PART,
    "ablation": ablation.PART,
}
"""In the order in which they are to be run."""
COMMITTED = Path(__file__).parent.parent / "results" / "gpu"


def main(words: list[str] | None = None) -> int:
    """Run the parts that the command line names; return the exit code: 1 where a cell failed."""
    options = _parser().parse_args(words)
    try:
        device = _device(options.dry_run)
        options.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="gpu-suite-") as folder:
            scratch = options.scratch or Path(folder)
            scratch.mkdir(parents=True, exist_ok=True)
            place = Place(scratch.resolve(), device, options.dry_run, options.peer_site)
            lines = [
                line
                for number, name in enumerate(options.part)
                for line in _run(name, place, options, options.part[number + 1 :])
            ]
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 1 if any(line["status"] in ("failed", "differs") for line in lines) else 0


def _run(name: str, place: Place, options: argparse.Namespace, others: Sequence[str]) -> list[Line]:
    """Return what was measured of the part; `others` come after it."""
    ledger = Ledger(
        options.out / f"{name}.jsonl", COMMITTED / f"{name}.jsonl", options.keep,
        options.commit or commit_of(Path(__file__).parent), options.dry_run,
    )  # fmt: skip
    after = [model for other in others for cell in PARTS[other].cells(place) for model in PARTS[other].models(cell)]
    outcome = run_part(
        PARTS[name], place, ledger, 60 * options.minutes, lambda line: print(_told(line), flush=True), after
    )  # fmt: skip
    print(f"{name}: {_summary(outcome)}", flush=True)
    return outcome.lines


def _device(dry_run: bool) -> Device:
    """Return this machine's device.

    Raises:
        UserError: no GPU, or one that others use.
    """
    device = detect_device()
    if dry_run:
        return device
    if device.kind != "cuda":
        raise UserError(f"no GPU is here, only {device.describe()}; --dry_run tries every part without one")
    require_quiet("; wait until it is free")
    return device


def _told(line: Line) -> str:
    """Return one line for a person: how a cell ended, and its main figures."""
    told = f"{line['name']}: {line['status']} in {line['seconds']:.0f} s"
    compared = line.get("compared") or {}
    if compared.get("off") is not None:
        told += f", {compared['allocated'] / 2**30:.2f} GiB, the plan is off by {compared['off']:+.1%}"
    for contender, found in compared.items():
        if isinstance(found, dict) and "tokens_per_second" in found:
            told += f", {contender} {found['tokens_per_second']:,.0f} tokens/s {found['peak_bytes'] / 2**30:.2f} GiB"
    for contender, reason in (line.get("unavailable") or {}).items():
        told += f"; {contender} is not there ({reason})"
    if shares := (line.get("measured") or {}).get("profile", {}).get("shares"):
        told += ", " + ", ".join(f"{group} {share:.0%}" for group, share in shares.items())
    return told + (f" ({line['error']})" if line.get("error") else "")


def _summary(outcome: Outcome) -> str:
    told = f"{len(outcome.lines)} measured, {outcome.known} known before"
    if outcome.left_out:
        told += f", {len(outcome.left_out)} not for this card"
    if outcome.left:
        told += f", {len(outcome.left)} left for want of time ({outcome.left[0]} …): run the same command again"
    return told


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=benchmarks.gpu.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="folder of the result files")
    parser.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS), help="all by default")
    parser.add_argument("--minutes", type=float, default=8, help="of each part")
    parser.add_argument("--dry_run", action="store_true", help="tiny models and two steps, on the CPU too")
    parser.add_argument("--scratch", type=Path, help="for models and rows; kept. By default a temporary folder")
    parser.add_argument("--peer_site", type=Path, help="folder of the packages of `peers`")
    parser.add_argument("--keep", action="store_true", help="take results of other code too")
    parser.add_argument("--commit", help="of this checkout, where it has come without git")
    return parser


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
