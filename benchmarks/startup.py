"""How long the command lines take to start.

Runs ``--help`` of every command a few times, each in a process of its own, beside an empty Python
and ``import lightning``, the least that training can start with.

    python -m benchmarks.startup
    python -m benchmarks.startup --repeats 1 --commands "llmrec_pl --help" --out small.json
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from benchmarks.processes import ONE_THREAD, ROOT, console, machine
from benchmarks.trials import write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

LIGHTNING = "import lightning"
MOST_TIMES, MOST_S = 1.3, 0.7
"""Of ``import lightning`` for commands that train; seconds for all others."""
HELP = 'write what is run as on the command line, without "python -m"; all by default'


def main(args: Sequence[str] | None = None) -> None:
    """Time every command, print a table, write JSON and a picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="the least counts (%(default)s)")
    parser.add_argument("--commands", nargs="+", metavar="COMMAND", help=HELP)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("benchmarks/results/startup.json"),
        metavar="FILE",
        help="figures go there, a picture beside it (%(default)s)",
    )
    options = parser.parse_args(args)
    lightning = seconds(["-c", LIGHTNING], options.repeats)
    rows: list[dict[str, Any]] = [
        {"command": "python", "cpu_s": seconds(["-c", "pass"], options.repeats), "limit_s": None},
        {"command": LIGHTNING, "cpu_s": lightning, "limit_s": None},
    ]
    rows += [
        {
            "command": command,
            "cpu_s": seconds(["-m", *command.split()], options.repeats),
            "limit_s": limit(command, lightning),
        }
        for command in options.commands or commands()
    ]
    show(rows)
    targets = {"times_import_lightning": MOST_TIMES, "seconds": MOST_S}
    write_json(options.out, {"machine": machine(), "targets": targets, "rows": rows})
    plot(rows, options.out.with_suffix(".png"))
    console().print(f"written to {options.out} and {options.out.with_suffix('.png')}")


def commands() -> list[str]:
    """Return the help of both packages and of all commands, of those that train `fit` alone."""
    from augment.cli import COMMANDS as AUGMENT
    from llmrec_pl.cli import COMMANDS

    return [
        "llmrec_pl --help",
        *(f"llmrec_pl {name} --help" for name in [*COMMANDS, "fit"]),
        "augment --help",
        *(f"augment {name} --help" for name in AUGMENT),
    ]


def limit(command: str, lightning: float) -> float:
    """Return the CPU seconds that a command may take.

    Args:
        command: as in `commands`.
        lightning: CPU seconds of ``import lightning``.
    """
    from llmrec_pl.cli import TRAINER_COMMANDS

    package, name = command.split()[:2]
    trains = package == "llmrec_pl" and name in TRAINER_COMMANDS
    return MOST_TIMES * lightning if trains else MOST_S


def seconds(arguments: Sequence[str], repeats: int) -> float:
    """Return the CPU seconds of a Python process, the least of several.

    Raises:
        SystemExit: it failed.
    """
    spent = []
    for _ in range(repeats):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run = subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**os.environ, **ONE_THREAD},
            stdout=subprocess.DEVNULL,
            check=False,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if run.returncode:
            raise SystemExit(f"`python {' '.join(arguments)}` failed, see above.")
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(spent)


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print one row a command."""
    table = Table(title="CPU seconds of a start")
    for column in ("python -m", "seconds", "limit", "ok"):
        table.add_column(column, justify="left" if column == "python -m" else "right")
    for row in rows:
        bound = row["limit_s"]
        table.add_row(
            row["command"],
            f"{row['cpu_s']:.2f}",
            "" if bound is None else f"{bound:.2f}",
            "" if bound is None else "yes" if row["cpu_s"] <= bound else "NO",
        )
    console().print(table)


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw seconds and limits, on a logarithmic scale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 0.22 * len(rows) + 1.0), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        bound = row["limit_s"]
        axes.barh(place, row["cpu_s"], color="#b8b8b8" if bound is None else "#1f5fa8")
        if bound is not None:
            axes.plot([bound] * 2, [place - 0.45, place + 0.45], color="#c2410c", lw=2)
    axes.set_yticks(range(len(rows)), [row["command"] for row in rows], fontsize=7)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.set_title("CPU seconds of a start; lines: limits", loc="left", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
