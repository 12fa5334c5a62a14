"""Compare trained models user by user: paired tests, intervals, effects, tables and a picture.

Runs that differ by the seed alone are joined: their per-user metrics are averaged. Only files
that `fit`, `validate` and `test` kept in the runs' `metrics` folders are read; no split is opened.

RUN is a run's folder, or a folder above several. NAME=RUN,RUN makes a group of your own; else
runs are joined by their recorded settings, and called by their model and what differs.

Examples:
  python -m llmrec_pl compare lightning_logs
  python -m llmrec_pl compare lightning_logs --metric recall@20 --metric ndcg@20 --out comparison
  python -m llmrec_pl compare ours=logs/a,logs/b LightGCN=logs/c,logs/d --baseline LightGCN
  python -m llmrec_pl compare logs/a logs/b --split test
  python -m llmrec_pl compare logs/a logs/b --candidates cold
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llmrec_pl.errors import ConfigError

if TYPE_CHECKING:
    import argparse

    from llmrec_pl.evaluation.comparison import Comparison
    from llmrec_pl.evaluation.kept_runs import RunGroup


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN|NAME=RUN,...", help="runs, folders of runs, named groups")
    add(
        "--metric",
        action="append",
        default=[],
        metavar="NAME@K",
        help="repeatable; the first one sorts (recall and ndcg at 20, else at the largest K)",
    )
    add(
        "--baseline",
        metavar="NAME",
        help="group that all others are held against (the best but one by the first metric on "
        "validation, so that the leading model meets the best other)",
    )
    add(
        "--split",
        choices=("val", "test"),
        help="whose kept metrics (test where every run kept them, else val)",
    )
    add(
        "--candidates",
        choices=("all", "cold", "warm"),
        default="all",
        help="the `evaluation.candidates` whose kept metrics are compared (all)",
    )
    add("--draws", type=int, default=10_000, help="of each test and interval (10000)")
    add("--seed", type=int, default=0, help="of the draws (0)")
    add("--out", type=Path, metavar="DIR", help="write comparison.txt .csv .json .tex .png .pdf")
    add(
        "--latex",
        choices=("stars", "p"),
        default="stars",
        help="how the LaTeX table shows significance (stars)",
    )


def run(args: argparse.Namespace) -> None:
    """Print the tables, and write the files.

    Raises:
        ConfigError: runs that are missing, incomplete or not comparable; unknown names.
    """
    from rich.console import Console

    from llmrec_pl.evaluation.comparison import compare
    from llmrec_pl.evaluation.comparison_report import comparison_tables
    from llmrec_pl.progress import ProgressReport

    groups, warnings = load_groups(args.runs, args.split, args.candidates)
    with ProgressReport("comparing", None, "comparisons") as progress:
        comparison = compare(
            groups, args.metric, args.baseline, args.draws, args.seed, progress.advance
        )
    comparison.warnings[:0] = warnings
    console = Console(width=None if Console().is_terminal else 110)
    for table in comparison_tables(comparison):
        console.print(table)
    for warning in comparison.warnings:
        console.print(f"note: {warning}", markup=False, highlight=False)
    if args.out:
        write_files(comparison, args.out, args.latex)
        console.print(f"written: {args.out}/comparison.*", markup=False, highlight=False)


def load_groups(
    arguments: list[str], split: str | None, candidates: str = "all"
) -> tuple[list[RunGroup], list[str]]:
    """Find, read and group runs.

    Args:
        arguments: ``RUN`` or ``NAME=RUN,RUN``, as typed.
        split: "val", "test", or None for test where every run kept it.
        candidates: which items were ranked: "all", "cold" or "warm".

    Returns:
        The groups, and what a person should know of them.

    Raises:
        ConfigError: a run is missing or incomplete, or groups overlap.
    """
    from llmrec_pl.evaluation.kept_runs import SPLITS, find_runs, group_runs, has_kept, read_run

    places: dict[str | None, list[Path]] = {}
    left_out: list[Path] = []
    wanted = SPLITS if split is None else (split,)
    for argument in arguments:
        name, paths = _parse(argument)
        for path in paths:
            for folder in find_runs(path):
                kept = any(has_kept(folder, one, candidates) for one in wanted)
                # A run that was named must be usable; one found in a folder may be unfinished.
                if kept or folder == path:
                    places.setdefault(name, []).append(folder)
                else:
                    left_out.append(folder)
    folders = [folder for found in places.values() for folder in found]
    if not folders:
        folders = left_out[:1]  # to be told what it lacks
        places = {None: folders}
    if split is None:
        kept = all(has_kept(folder, "test", candidates) for folder in folders)
        split = "test" if kept else "val"
    named = {}
    unnamed = []
    for name, found in places.items():
        distinct = {f.resolve(): f for f in found}.values()
        runs = [read_run(folder, split, candidates) for folder in distinct]
        if name is None:
            unnamed = runs
        else:
            named[name] = runs
    groups, warnings = group_runs(unnamed, named)
    if left_out:
        warnings.append(f"left out, without metrics of {split}: {', '.join(map(str, left_out))}.")
    return groups, warnings


def _parse(argument: str) -> tuple[str | None, list[Path]]:
    if Path(argument).exists() or "=" not in argument:
        return None, [Path(argument)]
    name, _, paths = argument.partition("=")
    if not name or not all(paths.split(",")):
        raise ConfigError(f"{argument!r} is no group; write `NAME=RUN` or `NAME=RUN,RUN`.")
    return name, [Path(path) for path in paths.split(",")]


def write_files(comparison: Comparison, folder: Path, latex: str) -> None:
    """Write the tables and pictures into `folder`.

    Args:
        comparison: what to write.
        folder: made if needed; earlier files of these names are replaced.
        latex: "stars" or "p".
    """
    from llmrec_pl.evaluation import comparison_report as report
    from llmrec_pl.evaluation.comparison_plot import plot_comparison

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "comparison"
    report.write_text(comparison, path.with_suffix(".txt"))
    report.write_csv(comparison, path.with_suffix(".csv"))
    report.write_json(comparison, path.with_suffix(".json"))
    report.write_latex(comparison, path.with_suffix(".tex"), "p" if latex == "p" else "stars")
    plot_comparison(comparison, [path.with_suffix(".png"), path.with_suffix(".pdf")])
