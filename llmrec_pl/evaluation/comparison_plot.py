"""The picture of a comparison: differences to the baseline with their intervals."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np

from llmrec_pl.evaluation.comparison import format_p
from llmrec_pl.evaluation.comparison_report import metric_heading

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from llmrec_pl.evaluation.comparison import Comparison, Line

_BLUE, _ORANGE, _GREY, _DARK = "#1f5fa8", "#c2410c", "#8a8f98", "#333333"


def plot_comparison(comparison: Comparison, paths: Sequence[Path]) -> None:
    """Draw one panel a metric: each model's difference, its interval, and its single seeds.

    Args:
        comparison: what to draw.
        paths: files to write; the endings decide the formats.
    """
    from matplotlib.figure import Figure

    metrics = comparison.about["metrics"]
    order = [line.label for line in comparison.of(metrics[0])]
    height = 1.5 + 0.5 * len(order)
    # Labels are names of users' own: a dollar sign is no formula.
    labels = [textwrap.fill(label, 28) for label in order]
    longest = max(len(part) for label in labels for part in label.split("\n"))
    width = 1.2 + 0.07 * longest + 4.4 * len(metrics)
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        lines = {line.label: line for line in comparison.of(metric)}
        _panel(axes, [lines[label] for label in order], metric)
    panels[0].set_yticks(range(len(order)), labels, parse_math=False)
    panels[0].set_ylim(len(order) - 0.5, -0.6)
    about = comparison.about
    figure.suptitle(
        f"{about['data']['name']}, {about['split']} split, {about['users']:,} users: difference "
        f"to {about['baseline']}, 95 % interval over users",
        x=0.01,
        ha="left",
        fontsize=10,
        parse_math=False,
    )
    for path in paths:
        figure.savefig(path, dpi=150)


def _panel(axes: Axes, lines: Sequence[Line], metric: str) -> None:
    baseline = next(line.mean for line in lines if line.versus is None)
    axes.axvline(0, color=_GREY, lw=1)
    for row, line in enumerate(lines):
        seeds = np.asarray(line.run_means) - baseline
        if len(seeds) > 1:
            axes.plot(seeds, np.full(len(seeds), row + 0.18), "|", color=_GREY, ms=6)
        if line.versus is None:
            axes.plot(0, row, "s", color=_GREY, ms=6)
            text = f"{line.mean:.4f}, baseline"
        else:
            low, high = line.versus.interval
            color = _DARK
            if line.versus.stars:
                color = _BLUE if line.versus.difference > 0 else _ORANGE
            axes.plot([low, high], [row, row], color=color, lw=2, solid_capstyle="butt")
            axes.plot(line.versus.difference, row, "o", color=color, ms=6)
            p = format_p(line.versus.p_holm)
            text = f"{line.mean:.4f}, Holm p {p if p.startswith('<') else f'= {p}'}"
            text += f" {line.versus.stars}" if line.versus.stars else ""
        axes.annotate(
            text,
            (1.0, row),
            (0, 7),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=_DARK,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        )
    axes.set_title(metric_heading(metric), loc="left", fontsize=10)
    axes.set_xlabel("difference (ticks: single seeds)", fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(labelsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)
