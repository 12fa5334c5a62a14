"""Tables and picture of the training step's benchmark."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

from benchmarks.processes import console

if TYPE_CHECKING:
    from pathlib import Path

Row = dict[str, Any]
RELEASED_S, RELEASED_GIB = 1.3, 3.4
"""CPU seconds of the released code's step on one thread, and its peak, measured once."""
TOP = 8
PARTS = {
    "sample": "#b8b8b8",
    "forward": "#1f5fa8",
    "backward": "#8fb3d9",
    "optimizer": "#d9a441",
}


def show(found: Row) -> None:
    """Print what steps cost, then the costliest operations of each."""
    out, rows = console(), found["rows"]
    first = rows[0]
    table = Table(
        title=f"a training step of LLMRec, CPU ms of one thread: {first['users']:,} users x "
        f"{first['items']:,} items, {first['edges']:,} edges, B = {found['batch_size']:,}"
    )
    names = "features", "config", "path"
    for name in (*names, *PARTS, "step", "of plain", "build s", "peak GiB", "ok"):
        table.add_column(name, justify="left" if name in names else "right")
    for row in rows:
        seconds, plain = row["step_cpu_s"], _plain_seconds(rows, row)
        table.add_row(
            row["features"],
            row["config"],
            row["path"],
            *(f"{1e3 * seconds[part]:.0f}" for part in PARTS),
            f"{1e3 * seconds['total']:.0f}",
            "" if plain is None else f"1 / {plain / seconds['total']:.1f}",
            f"{row['build_cpu_s']:.1f}",
            f"{row['peak_gib']:.2f}",
            verdict(row, found["targets"]),
        )
    out.print(table)
    targets = found["targets"]
    out.print(
        f"targets: {1e3 * targets['distinct_cpu_s']:.0f} ms with distinct and "
        f"{1e3 * targets['repeated_cpu_s']:.0f} ms with repeated attributes, "
        f"{targets['float32_peak_gib']} GiB in float32 and {targets['float16_peak_gib']} GiB in "
        f"float16; the released code takes {1e3 * RELEASED_S:,.0f} ms and {RELEASED_GIB} GiB.",
        highlight=False,
    )
    for row in rows:
        out.print(operations_table(row, found["rates"]))


def _plain_seconds(rows: list[Row], like: Row) -> float | None:
    for row in rows:
        same = row["features"] == like["features"] and row["config"] == like["config"]
        if same and row["path"].startswith("plain"):
            return float(row["step_cpu_s"]["total"])
    return None


def verdict(row: Row, targets: dict[str, float]) -> str:
    """Return whether a path meets its targets; the plain one has none, nor have other sizes.

    Args:
        row: of one path; only "released" does the work that the target of time is for.
        targets: see `benchmarks.training_step.TARGETS`.
    """
    propagation, storage = row["path"].split("/")
    if propagation == "plain" or row["edges"] < 50_000:
        return ""
    small = row["peak_gib"] <= targets[f"{storage}_peak_gib"]
    if row["config"] != "released":
        return "GiB yes" if small else "GiB NO"
    quick = row["step_cpu_s"]["total"] <= targets[f"{row['features']}_cpu_s"]
    return "yes" if quick and small else "NO"


def operations_table(row: Row, rates: dict[str, float]) -> Table:
    """Return the costliest operations of a step beside what the machine does at best.

    Args:
        row: of one path.
        rates: ``gflop_s`` and ``gb_s`` of the machine.
    """
    table = Table(
        title=f"{row['features']}, {row['config']}, {row['path']}: operations of a step; this "
        f"machine gives {rates['gflop_s']:.0f} GFLOP/s and {rates['gb_s']:.1f} GB/s",
        title_justify="left",
    )
    for name in ("operation", "calls", "CPU ms", "GFLOP", "GB", "GFLOP/s", "GB/s", "least ms"):
        table.add_column(name, justify="left" if name == "operation" else "right")
    ordered = sorted(row["operations"].items(), key=lambda pair: -pair[1]["cpu_s"])
    rest = [cost for _, cost in ordered[TOP:]]
    shown = [*ordered[:TOP]]
    for label, group in ((f"{len(rest)} others", rest), ("all", [c for _, c in ordered])):
        shown.append((label, {key: sum(c[key] for c in group) for key in _KEYS}))
    for name, cost in shown:
        cpu = max(cost["cpu_s"], 1e-12)
        table.add_row(
            name,
            f"{cost['calls']:.0f}",
            f"{1e3 * cost['cpu_s']:.1f}",
            f"{cost['gflop']:.2f}",
            f"{cost['gb']:.2f}",
            f"{cost['gflop'] / cpu:.1f}",
            f"{cost['gb'] / cpu:.1f}",
            f"{1e3 * least_seconds(cost, rates):.1f}" if name != "all" else _least(row, rates),
            style="bold" if name == "all" else None,
        )
    return table


_KEYS = ("calls", "cpu_s", "gflop", "gb")


def least_seconds(cost: dict[str, float], rates: dict[str, float]) -> float:
    """Return how long the machine must take: the longer of computing and moving."""
    return max(cost["gflop"] / rates["gflop_s"], cost["gb"] / rates["gb_s"])


def _least(row: Row, rates: dict[str, float]) -> str:
    return f"{1e3 * sum(least_seconds(c, rates) for c in row['operations'].values()):.1f}"


def plot(found: Row, path: Path) -> None:
    """Draw the parts of a step, and peak memory, against the targets."""
    from matplotlib.figure import Figure

    rows, targets = found["rows"], found["targets"]
    figure = Figure(figsize=(11, 7), layout="constrained")
    left, right = figure.subplots(2, 1)
    for place, row in enumerate(rows):
        bottom = 0.0
        for part, color in PARTS.items():
            spent = row["step_cpu_s"][part]
            label = part if place == 0 else None
            left.bar(place, spent, bottom=bottom, color=color, width=0.6, label=label)
            bottom += spent
        left.annotate(f"{1e3 * bottom:.0f} ms", (place, bottom), (0, 3), ha="center", fontsize=8,
                      textcoords="offset points")  # fmt: skip
        right.bar(place, row["peak_gib"], color="#1f5fa8", width=0.6)
        right.bar(place, row["before_gib"], color="#b8b8b8", width=0.6)
        right.annotate(f"{row['peak_gib']:.2f}", (place, row["peak_gib"]), (0, 3), ha="center",
                       textcoords="offset points", fontsize=8)  # fmt: skip
        propagation, storage = row["path"].split("/")
        if propagation == "plain":
            continue
        span = [place - 0.4, place + 0.4]
        if row["config"] == "released":
            left.plot(span, [targets[f"{row['features']}_cpu_s"]] * 2, color="#c2410c", lw=2)
        right.plot(span, [targets[f"{storage}_peak_gib"]] * 2, color="#c2410c", lw=2)
    left.set_ylim(0, 1.2 * max(row["step_cpu_s"]["total"] for row in rows))
    left.legend(fontsize=8, frameon=False, loc="upper center", ncols=4)
    left.set_title("CPU seconds of a step; lines: targets", loc="left", fontsize=9)
    right.set_title("peak GiB, grey before the model is built", loc="left", fontsize=9)
    labels = ["\n".join((r["features"], r["config"], *r["path"].split("/"))) for r in rows]
    for axes in (left, right):
        axes.set_xticks(range(len(rows)), labels, fontsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
