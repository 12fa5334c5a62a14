"""Pictures of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


def plot_history(
    history: Sequence[Mapping[str, Any]], monitor: str, mode: str, path: Path, title: str
) -> None:
    """Draw the validation metric over epochs, with the selected epoch marked.

    Args:
        history: one mapping an epoch, with ``epoch`` and metric names such as ``recall@20``.
        monitor: the metric that selects, with or without ``val/``.
        mode: "max" or "min", which end of the metric is selected.
        path: PNG file to write.
        title: heading of the picture.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    name = monitor.removeprefix("val/")
    shown = [name] if name.startswith("ndcg") else [name, name.replace(name.split("@")[0], "ndcg")]
    epochs = [row["epoch"] + 1 for row in history]
    select = max if mode == "max" else min
    best = select(range(len(history)), key=lambda i: float(history[i][name]))
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for metric, color in zip(shown, ("#1f5fa8", "#8a8f98"), strict=False):
        values = [float(row[metric]) for row in history]
        axes.plot(epochs, values, color=color, lw=1.8, marker="o" if len(epochs) == 1 else None)
        axes.annotate(
            metric, (epochs[-1], values[-1]), (6, 0), textcoords="offset points", color=color
        )
    value = float(history[best][name])
    axes.plot(epochs[best], value, "o", color="#c2410c")
    axes.annotate(
        f"selected: epoch {epochs[best]}, {value:.4f}",
        (epochs[best], value),
        (0, 10),
        textcoords="offset points",
        color="#c2410c",
        ha="right" if best > len(history) / 2 else "left",
    )
    top = max(float(row[metric]) for row in history for metric in shown)
    axes.set(xlabel="epoch", ylabel="validation", ylim=(0, 1.2 * top or 1))
    axes.set_title(title, loc="left", fontsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
