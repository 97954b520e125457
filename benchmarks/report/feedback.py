"""What a model learns from what is said of its answers, round by round: `feedback.jsonl`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.feedback import standing
from benchmarks.report.lines import done, read_results
from benchmarks.report.palette import BLUE, GREY, ORANGE, plain
from benchmarks.report.pieces import NOTHING, Block, Plot, Section, Table, number, share, spread, wrap
from hf_peft_recipes.bench.suite import Line

ARMS = {"ilf": ("`ilf`", BLUE), "rft": ("`rft`", ORANGE)}
_REFERENCES = "`sft` on the references"
_TEXT = (
    "Held-out rows answered right, by the model that is kept after each round: the mean over seeds, with the lowest"
    " and highest of them. Rounds are kept by these same rows, of both ways alike. All begin at the same start, which"
    " was told of half the things and shown how to take up what is said of an answer. Taken up is the share of new"
    " tries that were right. The teacher of `ilf` says how things were that an answer is wrong about; `rft` is told"
    " right or wrong, and writes as many tokens as `ilf` in each round."
    " Plain SFT is given the right answers of all prompts: what could be reached, not a rival."
)


def report(path: Path, name: str) -> Section | None:
    """Return what is told of the file; None where there is none.

    Args:
        path: of the result file.
        name: of the plot's file, without its ending.

    Raises:
        UserError: a line of another schema, or without its provenance.
    """
    found = read_results(path)
    if found is None:
        return None
    lines, provenance = found
    finished = done(lines)
    rounds = _rounds(finished)
    headings = (
        "learns by", "seeds", "base", "start", *(f"round {at}" for at in range(1, rounds + 1)), "gain in points",
        "taken up", "generated tokens", "trained tokens",
    )  # fmt: skip
    rows = [_row(arm, lines) for arm in ARMS] + [_references(lines, rounds)] if finished else []
    table = Table(provenance, headings, rows)
    seen = "Held-out rows answered right after each round: a line for each way to learn, with its spread over seeds."
    plot = Plot(provenance, f"{name}.png", seen, (7.5, 4.5), partial(draw, finished)) if finished else None
    return Section("Language feedback", wrap(_TEXT), table, plot, Block(provenance, _sentence(finished)))


def values(lines: Sequence[Line], arm: str) -> list[tuple[float, ...]]:
    """Return how right the kept model is at the start and after each round: for each, the value of every seed.

    Args:
        lines: of seeds that ran through.
        arm: one of `ARMS`.
    """
    return list(zip(*(standing(line["start"]["value"], line["arms"][arm]) for line in lines), strict=True))


def _rounds(lines: Sequence[Line]) -> int:
    return len(lines[0]["arms"]["ilf"]) if lines else 0


def _row(arm: str, lines: Sequence[Line]) -> list[str]:
    finished = done(lines)
    found = values(finished, arm)
    tries = sum(one["refinements"] for line in finished for one in line["arms"][arm])
    right = sum(one["refinements_accepted"] for line in finished for one in line["arms"][arm])
    return [
        ARMS[arm][0], f"{len(finished)} of {len(lines)}", _across([line["base"] for line in finished], share),
        *(_across(each, share) for each in found), _points(_gains(finished, arm)),
        share(right / tries) if tries else NOTHING,
        *(_across(_totals(finished, arm, key), number) for key in ("generated_tokens", "trained_tokens")),
    ]  # fmt: skip


def _references(lines: Sequence[Line], rounds: int) -> list[str]:
    finished = done(lines)
    start = [line["start"]["value"] for line in finished]
    reached = [line["sft"]["value"] for line in finished]
    gains = [after - before for before, after in zip(start, reached, strict=True)]
    return [
        _REFERENCES, f"{len(finished)} of {len(lines)}", _across([line["base"] for line in finished], share),
        _across(start, share), *[NOTHING] * (rounds - 1), _across(reached, share), _points(gains), NOTHING, "0",
        _across([line["sft"]["trained_tokens"] for line in finished], number),
    ]  # fmt: skip


def _totals(lines: Sequence[Line], arm: str, key: str) -> list[int]:
    return [sum(one[key] or 0 for one in line["arms"][arm]) for line in lines]


def _gains(lines: Sequence[Line], arm: str) -> list[float]:
    found = values(lines, arm)
    return [last - first for first, last in zip(found[0], found[-1], strict=True)]


def _points(gains: Sequence[float]) -> str:
    return _across([100 * gain for gain in gains], lambda value: f"{value:+.1f}")


def _across(found: Sequence[float], shown: Callable[[float], str]) -> str:
    """Return the mean, with the lowest and highest where they differ."""
    mean, ends = shown(statistics.mean(found)), spread(min(found), max(found), shown)
    return mean if mean == ends else f"{mean} ({ends})"


def _sentence(lines: Sequence[Line]) -> str:
    if not lines:
        return "No seed ended with a figure yet."
    ilf, rft = values(lines, "ilf"), values(lines, "rft")
    reached = [line["sft"]["value"] for line in lines]
    return (
        f"Held-out rows answered right, mean (lowest–highest) over {len(lines)} seed{'' if len(lines) == 1 else 's'}:"
        f" {_across(ilf[0], share)} at the start; after {len(ilf) - 1} rounds of `ilf` {_across(ilf[-1], share)}, of"
        f" `rft` on {_more(lines):.2f} times as many generated tokens {_across(rft[-1], share)};"
        f" {_across(reached, share)} by SFT on the references of all prompts, on as many trained tokens as `ilf`."
    )


def _more(lines: Sequence[Line]) -> float:
    """Return how many times the generated tokens of `ilf` those of `rft` are: it is to have no fewer."""
    ours, theirs = (sum(_totals(lines, arm, "generated_tokens")) for arm in ("ilf", "rft"))
    return theirs / ours


def draw(lines: Sequence[Line], figure: Any) -> None:
    """Draw how many held-out rows are answered right, over the rounds.

    Args:
        lines: of seeds that ran through.
        figure: of matplotlib.
    """
    axes = figure.subplots()
    told = {"ilf": "ilf", "rft": f"rft, {_more(lines):.2f} times as many generated tokens"}
    for arm, (_, colour) in ARMS.items():
        found = [[100 * value for value in each] for each in values(lines, arm)]
        at = range(len(found))
        axes.fill_between(at, [min(each) for each in found], [max(each) for each in found], color=colour, alpha=0.15)
        axes.plot(at, [statistics.mean(each) for each in found], "o-", color=colour, label=told[arm])
    reached = [100 * line["sft"]["value"] for line in lines]
    axes.axhspan(min(reached), max(reached), color=GREY, alpha=0.25, linewidth=0)
    axes.axhline(statistics.mean(reached), color=GREY, linestyle="--", label=_REFERENCES.replace("`", ""))
    axes.set(xlabel="round", ylabel="held-out rows answered right (%)", ylim=(0, 102))
    axes.set_xticks(range(_rounds(lines) + 1), ["start", *(str(at) for at in range(1, _rounds(lines) + 1))])
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    plain(axes, "y")
