"""How time and memory grow with users, items and edges: set-up, training steps, evaluation.

Generates power-law data of several sizes, measures each task of each size in a process of its own
(peak memory is a process's), and shows what 10 times the data cost. CPU seconds of one thread.

    python -m benchmarks.large_graph
    python -m benchmarks.large_graph --users 10000 50000
    python -m benchmarks.large_graph --users 10000 --items 2000 --edges 300000 --out small.json
"""

from __future__ import annotations

import argparse
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from benchmarks.large_graph_tasks import TASKS, run_task
from benchmarks.processes import apart, console, machine
from benchmarks.synthetic import write_folder
from benchmarks.trials import write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

USERS = (10_000, 100_000, 1_000_000)
ITEMS_A_USER, EDGES_A_USER = 0.3, 20
MOST_GROWTH = 1.5
"""What a step of MF or VBPR may grow by when everything grows ten times."""


def main() -> None:
    """Measure every task at every size, print tables, write JSON and a plot."""
    args = parse()
    if args.task:
        folder = Path(args.data)
        print(json.dumps(run_task(args.task, folder, args.batch_size, args.seconds)))
        return
    sizes = list(zip(args.users, args.items, args.edges, strict=True))
    records = []
    for size in sizes:
        folder = write_folder(args.work / "-".join(map(str, size)), *size)
        for task in args.tasks:
            wanted = ["--task", task, "--data", str(folder), "--batch-size", str(args.batch_size)]
            measured = apart("benchmarks.large_graph", *wanted, "--seconds", str(args.seconds))
            names = dict(zip(("users", "items", "edges"), size, strict=True))
            records.append({"task": task, **names, **measured})
            print(f"{size[0]:>9,} users  {task:<16} {one_line(measured)}", flush=True)
    found = {
        "machine": machine(),
        "batch_size": args.batch_size,
        "records": records,
        "growth": growth(records),
    }
    show(found["records"], found["growth"])
    write_json(args.out, found)
    plot(records, args.out.with_suffix(".png"))
    print(f"figures: {args.out}, {args.out.with_suffix('.png')}")


def parse() -> argparse.Namespace:
    """Read the command line; items and edges follow users unless given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, nargs="+", default=list(USERS), metavar="N")
    parser.add_argument("--items", type=int, nargs="+", metavar="N", help="default: 0.3 a user")
    parser.add_argument("--edges", type=int, nargs="+", metavar="N", help="default: 20 a user")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--seconds", type=float, default=8.0, help="CPU seconds of steps a task")
    parser.add_argument("--task", choices=TASKS, help="measure one here and print its JSON")
    parser.add_argument("--data", help="the folder for --task")
    parser.add_argument("--work", type=Path, default=Path(".cache/benchmarks/large_graph"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/large_graph.json"))
    args = parser.parse_args()
    args.items = args.items or [int(n * ITEMS_A_USER) for n in args.users]
    args.edges = args.edges or [n * EDGES_A_USER for n in args.users]
    if not len(args.users) == len(args.items) == len(args.edges):
        parser.error("--users, --items and --edges need equally many numbers")
    if bool(args.task) != bool(args.data):
        parser.error("--task and --data go together")
    return args


def one_line(measured: dict[str, Any]) -> str:
    """Say what a task took."""
    times = "  ".join(f"{name} {1e3 * value:,.1f} ms" for name, value in measured["cpu_s"].items())
    return f"peak {measured['peak_gib']:.2f} GiB  {times}"


def growth(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compare each size with the one before: edges, CPU seconds and memory above the imports."""
    grown = []
    for task in dict.fromkeys(r["task"] for r in records):
        rows = [r for r in records if r["task"] == task]
        for small, large in pairwise(rows):
            grown.append(
                {
                    "task": task,
                    "from_users": small["users"],
                    "to_users": large["users"],
                    "edges": large["edges"] / small["edges"],
                    "cpu": large["cpu_s"]["total"] / small["cpu_s"]["total"],
                    "memory": _added(large) / _added(small),
                }
            )
    return grown


def _added(record: dict[str, Any]) -> float:
    return float(record["peak_gib"] - record["imports_gib"])


def show(records: Sequence[dict[str, Any]], grown: Sequence[dict[str, Any]]) -> None:
    """Print one row a task and size, and one a growth."""
    out = console()
    table = Table(title="CPU of one thread; total is of a step, of the set-up, of 1,000 users")
    for column in ("task", "users", "items", "edges", "total ms", "peak GiB"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for r in sorted(records, key=lambda r: list(TASKS).index(r["task"])):
        sizes = [f"{r[name]:,}" for name in ("users", "items", "edges")]
        total = f"{1e3 * r['cpu_s']['total']:,.1f}"
        table.add_row(r["task"], *sizes, total, f"{r['peak_gib']:.2f}")
    out.print(table)
    table = Table(title="growth from one size to the next, in times")
    for column in ("task", "users", "edges", "CPU", "memory", "limit", "ok"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for g in grown:
        limit = limit_of(g)
        name = f"{g['from_users']:,} to {g['to_users']:,}"
        values = [f"{g[key]:.2f}" for key in ("edges", "cpu", "memory")]
        fine = limit is None or g["cpu"] <= limit
        shown = "" if limit is None else f"{limit:.2f}"
        table.add_row(g["task"], name, *values, shown, "yes" if fine else "NO")
    out.print(table)


def limit_of(grown: dict[str, Any]) -> float | None:
    """Return what a growth of CPU time may be; None where the comparison sets no target."""
    if grown["task"] in ("MF lazy", "VBPR lazy"):
        return float(MOST_GROWTH ** max(1.0, math.log10(grown["edges"])))
    return None if grown["task"] == "MF dense" else float(grown["edges"])


def plot(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw CPU time and memory over users, both logarithmic, with a line of linear growth."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for axis, label in zip(axes, ("CPU seconds of one thread", "peak GiB"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel="users (items 0.3, edges 20 times)")
        axis.set_ylabel(label)
    for task in dict.fromkeys(r["task"] for r in records):
        rows = [r for r in records if r["task"] == task]
        users = [r["users"] for r in rows]
        axes[0].plot(users, [r["cpu_s"]["total"] for r in rows], marker="o", label=task)
        axes[1].plot(users, [r["peak_gib"] for r in rows], marker="o", label=task)
    axes[0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
