"""Summarise a data set folder: sizes, splits, degrees, cold items, features, protocol, origin.

Also draws how many interactions users and items have, because recommendation data are skewed:
a straight falling line on the picture's double logarithmic axes is a heavy tail. The test
split stays sealed: what is said of it was counted by `prepare`.

Examples:
  python -m llmrec_pl describe data/ml-100k
  python -m llmrec_pl describe data/ml-100k --plot degrees.png
  python -m llmrec_pl describe data/ml-100k --no-plot
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llmrec_pl.errors import DatasetError
from llmrec_pl.evaluation.groups import gini

if TYPE_CHECKING:
    import argparse

    import numpy as np
    from matplotlib.axes import Axes
    from numpy.typing import NDArray
    from rich.console import Console

    from llmrec_pl.data.dataset import InteractionDataset

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `describe`."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="a data set folder")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="picture to write (DIR/describe.png); .png, .pdf, .svg",
    )
    parser.add_argument("--no-plot", action="store_true", help="draw no picture")


def run(args: argparse.Namespace) -> None:
    """Print the summary and draw the picture."""
    from rich.console import Console

    from llmrec_pl.data.dataset import InteractionDataset

    console = Console()
    dataset = InteractionDataset.load(args.folder)
    _print_sizes(dataset, console)
    _print_degrees(dataset, console)
    _print_features(dataset, console)
    _print_origin(dataset, console)
    if not args.no_plot:
        path = args.plot or args.folder / "describe.png"
        plot_degrees(dataset, path)
        console.print(f"picture: {path}", markup=False, highlight=False)


def degrees(dataset: InteractionDataset) -> dict[str, NDArray[np.int64]]:
    """Return the number of train interactions of each user and each item."""
    import numpy as np

    train = dataset.train
    return {
        "users": np.diff(train.indptr).astype(np.int64),
        "items": np.bincount(train.indices, minlength=dataset.n_items).astype(np.int64),
    }


def _print_sizes(dataset: InteractionDataset, console: Console) -> None:
    from rich.table import Table

    counts = dataset.meta["counts"]
    total = sum(counts["splits"].values())
    table = Table(title=f"data set {dataset.name}", title_justify="left")
    for column in ("split", "interactions", "share", "users", "items"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split, size in counts["splits"].items():
        n_users, n_items = (counts[f"{side}s_by_split"][split] for side in ("user", "item"))
        table.add_row(split, f"{size:,}", f"{size / total:.1%}", f"{n_users:,}", f"{n_items:,}")
    table.add_section()
    table.add_row("all", f"{total:,}", "", f"{dataset.n_users:,}", f"{dataset.n_items:,}")
    console.print(table)
    cold_test = counts["test_interactions_with_items_without_train"]
    for line in (
        f"sparsity {1 - total / (dataset.n_users * dataset.n_items):.4%}",
        f"cold items (none in train): {counts['items_without_train']:,} of {dataset.n_items:,}; "
        f"{cold_test:,} test interactions are with them",
        f"cold users (none in train): {counts['users_without_train']:,} of {dataset.n_users:,}",
    ):
        console.print(line, highlight=False)


def _print_degrees(dataset: InteractionDataset, console: Console) -> None:
    import numpy as np
    from rich.table import Table

    table = Table(title="train interactions, quantiles", title_justify="left")
    table.add_column("of")
    for q in QUANTILES:
        name = {0.0: "min", 0.5: "median", 1.0: "max"}.get(q, f"{q:.0%}")
        table.add_column(name, justify="right")
    table.add_column("mean", justify="right")
    table.add_column("Gini", justify="right")
    for side, values in degrees(dataset).items():
        quantiles = np.quantile(values, QUANTILES, method="higher")
        cells = [f"{int(v):,}" for v in quantiles]
        table.add_row(side, *cells, f"{values.mean():.1f}", f"{gini(values):.2f}")
    console.print(table)


def _print_features(dataset: InteractionDataset, console: Console) -> None:
    from rich.table import Table

    features = dataset.meta.get("features", {})
    texts = {"users": dataset.users_frame(), "items": dataset.items_frame()}
    for side, frame in texts.items():
        known = [
            f"{c} ({frame[c].count() / max(frame.height, 1):.0%})"
            for c in frame.columns
            if c not in (side[:-1], f"{side[:-1]}_id")
        ]
        console.print(
            f"{side} columns: {', '.join(known) or 'none'}", markup=False, highlight=False
        )
    if not features:
        console.print(
            "features: none; make some with `python -m llmrec_pl features`", highlight=False
        )
        return
    table = Table(title="features", title_justify="left")
    for column in ("name", "side", "group", "rows", "dim", "missing", "distinct", "type"):
        table.add_column(
            column, justify="right" if column in ("rows", "dim", "missing", "distinct") else "left"
        )
    for name, entry in features.items():
        numbers = [f"{entry[key]:,}" for key in ("rows", "dim", "missing", "distinct")]
        table.add_row(name, entry["side"], entry["group"], *numbers, entry["dtype"])
    console.print(table)


def _print_origin(dataset: InteractionDataset, console: Console) -> None:
    from rich.table import Table

    meta = dataset.meta
    table = Table(title="protocol and origin", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for key, value in meta["protocol"].items():
        if value not in (None, []):
            table.add_row(key, str(value))
    table.add_section()
    for what, removed in meta["counts"]["removed"].items():
        table.add_row(f"removed: {what}", f"{removed:,} of {meta['counts']['raw']:,} raw rows")
    table.add_section()
    for key, value in meta["provenance"].items():
        lines = value if isinstance(value, list) else [value]
        if isinstance(value, dict):
            lines = [f"{k}: {v}" for k, v in value.items()]
        table.add_row(key, "\n".join(map(str, lines)))
    console.print(table, markup=False)
    console.print(f"fingerprint {meta['fingerprint']}", highlight=False)


def plot_degrees(dataset: InteractionDataset, path: Path) -> None:
    """Draw, for users and items, which share has at least so many train interactions.

    Args:
        dataset: the data set.
        path: the picture; its ending decides the format.

    Raises:
        DatasetError: the picture cannot be written there.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=False)
    colours = {"users": "#0b6e99", "items": "#c2571a"}
    for ax, (side, values) in zip(axes, degrees(dataset).items(), strict=True):
        _draw(ax, side, values, colours[side])
    figure.suptitle(
        f"{dataset.name}: {dataset.n_users:,} users, {dataset.n_items:,} items, "
        f"{dataset.train.nnz:,} train interactions",
        fontsize=12,
    )
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise DatasetError(f"cannot write the picture {str(path)!r}: {error}.") from error


def _draw(ax: Axes, side: str, values: NDArray[np.int64], colour: str) -> None:
    import numpy as np

    known = np.sort(values[values > 0])
    if len(known):
        distinct, first = np.unique(known, return_index=True)
        share = (len(known) - first) / len(values)
        ax.step(distinct, share, where="pre", color=colour, linewidth=1.8)
        ax.plot(distinct, share, ".", color=colour, markersize=4)
        median = float(np.median(values))
        mean = float(values.mean())
        marks = (("median", median, "--"), ("mean", mean, ":"))
        for name, place, style in marks:
            if place > 0:
                ax.axvline(
                    place, color="0.35", linestyle=style, linewidth=1, label=f"{name} {place:,.1f}"
                )
        ax.legend(framealpha=1, edgecolor="none", loc="lower left", fontsize=9)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel(f"train interactions k of one {side[:-1]}")
    ax.set_ylabel(f"share of {side} with at least k")
    top = int(values.max(initial=0))
    none = int((values == 0).sum())
    ax.set_title(
        f"{side}: maximum {top:,}, Gini {gini(values):.2f}"
        + (f", {none:,} without any" if none else ""),
        fontsize=10,
        loc="left",
    )
    _plain_ticks(ax)
    ax.grid(visible=True, which="major", color="0.9")
    ax.spines[["top", "right"]].set_visible(False)


def _plain_ticks(ax: Axes) -> None:
    """Write 100 and 10 % instead of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:g} %"))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_minor_formatter(NullFormatter())
