"""The results of a sweep: one record an entry, as a table, Markdown, JSON, parquet, a picture."""

from __future__ import annotations

import dataclasses
import json
import statistics
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from llmrec_pl.sweeping.plan import Run

SHORT = {"recall": "R", "ndcg": "N", "precision": "P"}


@dataclasses.dataclass(frozen=True)
class Entry:
    """The finished runs of one entry on one split.

    Attributes:
        name: of the entry.
        seeds: those of its finished runs.
        values: metric name to one value a seed.
        users: users with held-out items.
        select: the metric that orders entries: ``recall@20``, else the first recall there is.
        hits: hits in the top K of it, mean over seeds.
        seconds: CPU seconds an epoch, mean over seeds; None where the cost is not known.
        epochs: mean number of epochs.
    """

    name: str
    seeds: tuple[int, ...]
    values: dict[str, tuple[float, ...]]
    users: int
    select: str
    hits: float
    seconds: float | None
    epochs: float | None

    def mean(self, metric: str) -> float:
        """Return the mean over seeds."""
        return statistics.fmean(self.values[metric])

    def deviation(self, metric: str) -> float | None:
        """Return the sample standard deviation over seeds, None for one seed."""
        found = self.values[metric]
        return statistics.stdev(found) if len(found) > 1 else None


def entries_of(runs: Sequence[Run], split: str) -> list[Entry]:
    """Collect the runs that have the split's metrics, in the order of the sweep."""
    entries = []
    for name in dict.fromkeys(run.name for run in runs):
        found = [(run, run.metrics(split)) for run in runs if run.name == name]
        done = [(run, record["metrics"]) for run, record in found if record is not None]
        if not done:
            continue
        costs = [c for run, _ in done if (c := run.cost())]
        seconds = [c["cpu_seconds_per_epoch"] for c in costs]
        select = selecting(done[0][1])
        k = select.rpartition("@")[2]
        entries.append(
            Entry(
                name,
                tuple(run.seed for run, _ in done),
                {
                    metric: tuple(m[metric] for _, m in done)
                    for metric in done[0][1]
                    if "@" in metric and not metric.startswith("hits")
                },
                int(done[0][1]["users"]),
                select,
                statistics.fmean(m[f"hits@{k}"] for _, m in done),
                statistics.fmean(seconds) if seconds else None,
                statistics.fmean(c["epochs"] for c in costs) if costs else None,
            )
        )
    return entries


def _columns(metrics: Iterable[str], select: str) -> list[str]:
    """Return recall and NDCG at every K and precision at one, as in Table 2 of the paper."""
    ks = sorted({int(name.partition("@")[2]) for name in metrics if name.startswith("recall@")})
    both = [f"{name}@{k}" for k in ks for name in ("recall", "ndcg")]
    return [*both, f"precision@{select.partition('@')[2]}"]


def _heading(metric: str) -> str:
    name, _, k = metric.partition("@")
    return f"{SHORT[name]}@{k}"


def _decimals(value: float) -> str:
    """Return four decimals, without the zero before the point, as papers print metrics."""
    return f"{value:.4f}".lstrip("0")


def _cells(entry: Entry, columns: Sequence[str], best: dict[str, str], mark: str) -> list[str]:
    cells = []
    for metric in columns:
        text, deviation = _decimals(entry.mean(metric)), entry.deviation(metric)
        text = f"{mark}{text}{mark}" if best[metric] == entry.name else text
        cells.append(text if deviation is None else f"{text} ±{_decimals(deviation)}")
    return cells


def _best(entries: Sequence[Entry], columns: Sequence[str]) -> dict[str, str]:
    """Return the name of the entry with the best mean of each metric."""
    best = {}
    for metric in columns:
        means = {entry.name: entry.mean(metric) for entry in entries}
        best[metric] = max(means, key=means.__getitem__)
    return best


def _numbers(entry: Entry) -> list[str]:
    return [
        f"{entry.hits:,.0f}",
        "-" if entry.seconds is None else f"{entry.seconds:.2f}",
        "-" if entry.epochs is None else f"{entry.epochs:.0f}",
        str(len(entry.seeds)),
    ]


def _number_headings(entry: Entry) -> tuple[str, ...]:
    return f"hits@{entry.select.rpartition('@')[2]}", "CPU s/epoch", "epochs", "seeds"


def selecting(metrics: Iterable[str]) -> str:
    """Return the metric that orders entries."""
    recalls = [name for name in metrics if name.startswith("recall@")]
    return "recall@20" if "recall@20" in recalls else recalls[0]


def results_table(entries: Sequence[Entry], title: str) -> Table:
    """Return mean and deviation over seeds of every entry."""
    columns = _columns(entries[0].values, entries[0].select)
    table = Table(title=f"{title}, {entries[0].users:,} users", title_justify="left")
    table.add_column("model", no_wrap=True)
    for heading in (*map(_heading, columns), *_number_headings(entries[0])):
        table.add_column(heading, justify="right")
    best = _best(entries, columns)
    for entry in entries:
        style = "bold" if best[entry.select] == entry.name else None
        table.add_row(entry.name, *_cells(entry, columns, best, ""), *_numbers(entry), style=style)
    return table


def results_markdown(entries: Sequence[Entry]) -> str:
    """Return the same as a Markdown table, the best mean of each column in bold."""
    columns = _columns(entries[0].values, entries[0].select)
    headings = ["model", *map(_heading, columns), *_number_headings(entries[0])]
    best = _best(entries, columns)
    lines = ["| " + " | ".join(headings) + " |", "|---|" + "---:|" * (len(headings) - 1)]
    for entry in entries:
        cells = [entry.name, *_cells(entry, columns, best, "**"), *_numbers(entry)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write_results(path: Path, by_split: dict[str, list[Entry]], data: dict[str, Any]) -> None:
    """Write all metrics of all seeds as JSON."""
    content = {
        "data": data,
        "splits": {
            split: [
                {
                    **dataclasses.asdict(entry),
                    "mean": {m: entry.mean(m) for m in entry.values},
                    "deviation": {m: entry.deviation(m) for m in entry.values},
                }
                for entry in entries
            ]
            for split, entries in by_split.items()
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def write_per_user(path: Path, runs: Sequence[Run], split: str) -> None:
    """Write the kept per-user metrics of all finished runs as one parquet file."""
    import polars as pl

    frames = []
    for run in runs:
        file = run.file(split, "_per_user.parquet")
        if file.is_file():
            frame = pl.read_parquet(file)
            kept = _columns(frame.columns, selecting(frame.columns))
            frames.append(
                frame.select(
                    pl.lit(run.name).alias("model"),
                    pl.lit(run.seed).alias("seed"),
                    "user_id",
                    "n_relevant",
                    *(pl.col(c).cast(pl.Float32) for c in kept),
                )
            )
    pl.concat(frames).write_parquet(path, compression="zstd", compression_level=15)


def plot_results(path: Path, entries: Sequence[Entry], title: str) -> None:
    """Draw the selecting metric of every entry: each seed a point, the mean a line."""
    from matplotlib.figure import Figure

    select = entries[0].select
    order = sorted(entries, key=lambda e: e.mean(select))
    figure = Figure(figsize=(6.8, 0.6 + 0.27 * len(order)), layout="constrained")
    axes = figure.subplots()
    for row, entry in enumerate(order):
        values = entry.values[select]
        axes.plot(values, [row] * len(values), "o", ms=4, color="#1f5fa8", alpha=0.45, mew=0)
        mean = entry.mean(select)
        axes.plot([mean, mean], [row - 0.32, row + 0.32], color="#c2410c", lw=2)
    axes.set_yticks(range(len(order)), [e.name for e in order], fontsize=9)
    axes.set(xlabel=f"{_heading(select)}: one point a seed, the bar is their mean")
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(axis="x", color="#e4e6ea", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    figure.savefig(path, dpi=150)


def put_into(path: Path, tables: dict[str, str]) -> None:
    """Replace the tables between ``<!-- results: NAME -->`` and ``<!-- end -->`` of a page.

    A page without a pair of marks for a table is left as it is for that table.
    """
    text = path.read_text(encoding="utf-8")
    for name, table in tables.items():
        start, end = f"<!-- results: {name} -->\n", "<!-- end -->"
        head, mark, rest = text.partition(start)
        if mark:
            text = head + mark + "\n" + table + "\n" + end + rest.partition(end)[2]
    path.write_text(text, encoding="utf-8")
