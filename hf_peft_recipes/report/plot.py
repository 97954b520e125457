"""`loss.png`: training and held-out loss over the steps; of a run that learns from rewards, those."""

from collections.abc import Mapping, Sequence
from pathlib import Path


def plot_losses(curve: Sequence[Mapping[str, float]], path: Path, title: str) -> None:
    """Write the plot of a run's losses as a PNG.

    Args:
        curve: points with `step` and `loss` or `eval_loss`, in nats a token; maybe `reward`, `eval_reward`.
        path: the file to write.
        title: the recipe's name.
    """
    # Not pyplot: it keeps global state and looks for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    # The loss of what is rewarded stays about zero, whatever is learned.
    kind, unit = ("reward", "mean") if any("reward" in point for point in curve) else ("loss", "nats a token")
    for key, label, style in ((kind, "training", "-"), (f"eval_{kind}", "validation", "o-")):
        points = [(point["step"], point[key]) for point in curve if key in point]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4, linewidth=1.4)
    axes.set(title=title, xlabel="optimizer step", ylabel=f"{kind} ({unit})")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False)
    figure.savefig(path)
