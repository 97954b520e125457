"""What each method learns, forgets and costs: `quality.jsonl`, `quality_real.jsonl`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.report.lines import done, listed, read_results
from benchmarks.report.palette import BLACK, colours_of, plain
from benchmarks.report.pieces import MIB, NOTHING, Block, Plot, Section, Table, mib, number, share, spread, wrap
from hf_peft_recipes.bench.suite import Line

METRICS = ("accuracy", "exact_match", "macro_f1", "loss")
"""The first one that a task has is its metric."""
Shown = Callable[[float], str]


@dataclass(frozen=True)
class Group:
    """The runs of a method on one task, a seed each."""

    method: str
    task: tuple[Any, ...]
    """Base, data, steps, further flags."""
    lines: Sequence[Line]

    @property
    def label(self) -> str:
        """The method's name, marked where its base is quantised."""
        return f"{self.method} (quantised)" if any(line["quantized"] for line in done(self.lines)) else self.method

    @property
    def metric(self) -> str:
        """Name of what is told of the task."""
        found = done(self.lines)[0]["metrics"]["after"]
        return next(name for name in METRICS if name in found)

    def values(self, value: Callable[[Line], float]) -> list[float]:
        """Return a figure of each run that ran through."""
        return [value(line) for line in done(self.lines)]

    def metrics(self, name: str, side: str) -> list[float]:
        """Return a metric of each run, `before` or `after`."""
        return self.values(lambda line: line["metrics"][side][name])

    def interval(self, name: str, side: str) -> tuple[float, float]:
        """Return the lowest and highest end of the runs' bootstrap intervals: no seed's own would hold the mean."""
        found = [line["metrics"]["intervals"][side][name] for line in done(self.lines)]
        return min(low for low, _ in found), max(high for _, high in found)

    def forgotten(self) -> list[float]:
        """Return by how much each run's loss on the other text grew, in nats a token; empty where none was taken."""
        taken = [line["forgetting"] for line in done(self.lines) if line["forgetting"]]
        return [one["after"] - one["before"] for one in taken]


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
    groups = group(lines)
    finished = [one for one in groups if done(one.lines)]
    headings = (
        "base", "data", "steps", "method", "seeds", "metric", "before", "after", "95 % interval", "loss before",
        "loss after", "95 % interval", "other text's loss", "forgotten", "peak MiB", "train s", "tokens/s",
        "MiB on disk",
    )  # fmt: skip
    table = Table(provenance, headings, [_row(one) for one in groups])
    plot = None
    if finished:
        seen = "Quality after training, and what was forgotten, against peak memory: a point a method."
        size = (9.5, 1.2 + 3.4 * len(_tasks(finished)))
        plot = Plot(provenance, f"{name}.png", seen, size, partial(draw, finished))
    columns = (
        "data", "method", "metric", "before", "after", "95 % interval", "forgotten", "peak MiB", "train s",
        "MiB on disk",
    )  # fmt: skip
    rows = [[one.task[1], *_short(one)] for one in finished]
    block = Block(provenance, _sentence(finished), Table(provenance, columns, rows) if rows else None)
    title = "Quality on real data" if all(line["cell"]["dataset"] != "embedded" for line in lines) else "Quality"
    return Section(title, wrap(_TEXT), table, plot, block)


_TEXT = (
    "A figure is the mean over seeds, with the lowest and highest of them; the interval reaches from the lowest to the"
    " highest end of the seeds' bootstrap intervals over held-out rows. Losses are in nats a token. Forgotten is by how"
    " much the loss on another text, one like the base was pretrained on, grew; on disk is what was trained, an adapter"
    " or a model."
)


def group(lines: Iterable[Line]) -> list[Group]:
    """Return the runs of each method and task together, task by task, in the order in which they come."""
    found = dict[tuple[Any, ...], list[Line]]()
    for line in lines:
        cell = line["cell"]
        task = (cell["model"], cell["dataset"], cell["steps"], *cell["flags"])
        found.setdefault((cell["method"], task), []).append(line)
    groups = [Group(method, task, together) for (method, task), together in found.items()]
    tasks = _tasks(groups)
    return sorted(groups, key=lambda one: tasks.index(one.task))


def _tasks(groups: Sequence[Group]) -> list[tuple[Any, ...]]:
    return list(dict.fromkeys(one.task for one in groups))


def _row(one: Group) -> list[str]:
    base, data, steps, *_ = one.task
    finished = done(one.lines)
    seeds = f"{len(finished)} of {len(one.lines)}"
    told = [base, data, "all" if steps is None else str(steps), one.label]
    if not finished:
        return [*told, seeds, listed([line["status"] for line in one.lines]), *[NOTHING] * 12]
    texts = [line["forgetting"] for line in finished if line["forgetting"]]
    other = _across([text["after"] for text in texts], _loss) if texts else NOTHING
    metric = one.metric
    return [
        *told, seeds, metric.replace("_", " "),
        _across(one.metrics(metric, "before"), _shown(metric)), _across(one.metrics(metric, "after"), _shown(metric)),
        spread(*one.interval(metric, "after"), _shown(metric)),
        _across(one.metrics("loss", "before"), _loss), _across(one.metrics("loss", "after"), _loss),
        spread(*one.interval("loss", "after"), _loss), other, _across(one.forgotten(), _growth), *_costs(one),
    ]  # fmt: skip


def _short(one: Group) -> list[str]:
    metric = one.metric
    shown, costs = _shown(metric), _costs(one)
    return [
        one.label, metric.replace("_", " "), _across(one.metrics(metric, "before"), shown),
        _across(one.metrics(metric, "after"), shown), spread(*one.interval(metric, "after"), shown),
        _across(one.forgotten(), _growth), costs[0], costs[1], costs[3],
    ]  # fmt: skip


def _costs(one: Group) -> list[str]:
    return [
        _across(one.values(lambda line: line["measured"]["peak_memory_bytes"]), mib),
        _across(one.values(lambda line: line["measured"]["train_seconds"]), lambda value: number(value, 1)),
        _across(one.values(lambda line: line["measured"]["tokens_per_second"]), number),
        _across(one.values(lambda line: line["trained_bytes"]), lambda value: number(value / MIB, 2)),
    ]


def _across(values: Sequence[float], shown: Shown) -> str:
    """Return the mean, with the lowest and highest where they differ."""
    if not values:
        return NOTHING
    mean, ends = shown(statistics.mean(values)), spread(min(values), max(values), shown)
    return mean if mean == ends else f"{mean} ({ends})"


def _shown(metric: str) -> Shown:
    return _loss if metric == "loss" else share


def _loss(value: float) -> str:
    return f"{value:.3f}"


def _growth(value: float) -> str:
    return f"{value:+.3f}"


def _sentence(groups: Sequence[Group]) -> str:
    if not groups:
        return "No run ended with a figure yet."
    told = [
        f"{base} on {data}, {'all its' if steps is None else steps} steps" for base, data, steps, *_ in _tasks(groups)
    ]
    seeds = sorted({len(done(one.lines)) for one in groups})
    number_of = spread(seeds[0], seeds[-1], str)
    return (
        f"{'; '.join(told)}; mean (lowest–highest) over {number_of} seed{'' if seeds[-1] == 1 else 's'}, and what their"
        " bootstrap intervals span. Forgotten: nats a token that the loss on a text like the base's own grew by."
    )


def draw(groups: Sequence[Group], figure: Any) -> None:
    """Draw two fields a task: the metric against memory, and what was forgotten against memory.

    Args:
        groups: with at least one run each.
        figure: of matplotlib.
    """
    tasks = _tasks(groups)
    colours = colours_of([one.label for one in groups])
    fields = figure.subplots(len(tasks), 2, squeeze=False, sharex="row")
    for row, task in zip(fields, tasks, strict=True):
        here = [one for one in groups if one.task == task]
        metric = here[0].metric
        scale = 1 if metric == "loss" else 100
        for one in here:
            values = [scale * value for value in one.metrics(metric, "after")]
            _point(row[0], one, values, [scale * end for end in one.interval(metric, "after")], colours)
            if lost := one.forgotten():
                _point(row[1], one, lost, [min(lost), max(lost)], colours)
        unit = "nats a token" if metric == "loss" else "%"
        row[0].set(ylabel=f"{metric.replace('_', ' ')} ({unit})", title=f"{task[0]} on {task[1]}")
        row[1].set(ylabel="other text's loss grew (nats)", title="forgotten")
        for axes in row:
            axes.set_xlabel("peak memory while training (MiB)", fontsize=9)
            axes.title.set_fontsize(10)
            axes.margins(x=0.2, y=0.15)
            plain(axes, "both")
        if not any(one.forgotten() for one in here):
            row[1].set_axis_off()
    marks = {one.label: (colours[one.label], "s" if one.label != one.method else "o") for one in groups}
    handles = [fields[0][0].plot([], [], mark, color=colour, label=name)[0] for name, (colour, mark) in marks.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=6, frameon=False, fontsize=9)


def _point(axes: Any, one: Group, values: Sequence[float], ends: Sequence[float], colours: dict[str, str]) -> None:
    memory = [value / MIB for value in one.values(lambda line: line["measured"]["peak_memory_bytes"])]
    middle, height = statistics.mean(memory), statistics.mean(values)
    axes.errorbar(
        [middle], [height], xerr=[[middle - min(memory)], [max(memory) - middle]],
        yerr=[[height - ends[0]], [ends[1] - height]], fmt="s" if one.label != one.method else "o",
        color=colours[one.label], markeredgecolor=BLACK, markeredgewidth=0.5, capsize=3, markersize=7, linewidth=1.2,
    )  # fmt: skip
