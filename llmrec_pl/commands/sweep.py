"""Train many models with several seeds on one data set, and make one table of them.

A sweep is a YAML file:
  base: configs/ml-100k.yaml          # config files that every entry begins with
  tuned: configs/tuned/ml-100k        # at will: <model>.yaml in it follows the model's own file
  seeds: [2026, 1, 2, 3, 4]
  test: true                          # open the test split once for every run
  out: runs/ml-100k
  entries:                            # a name, and the config files it adds
    LightGCN: configs/models/lightgcn.yaml
    LightGCN without LLM edges: [configs/models/lightgcn.yaml, configs/ablations/no_llm_edges.yaml]

Each run has a folder of its own with config, checkpoints, metrics and per-user metrics;
`compare` reads them and calls the models by the names of the entries. A sweep that was stopped
goes on with the same command, in the middle of a run too; what is finished is only read.

Arguments after `--` go to `fit`.

Examples:
  python -m llmrec_pl sweep configs/sweeps/ml-100k.yaml --workers 2
  python -m llmrec_pl sweep configs/sweeps/ml-100k.yaml --seeds 1 2 3 --only MF LightGCN
  python -m llmrec_pl sweep configs/sweeps/ml-100k.yaml --table
  python -m llmrec_pl sweep MINE.yaml -- --data.root data/mine --trainer.max_epochs 50
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmrec_pl.errors import ConfigError

if TYPE_CHECKING:
    import argparse

    from rich.console import Console

    from llmrec_pl.sweeping.plan import Run, Sweep


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("sweep", metavar="FILE", help="YAML file of the sweep")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="in place of the file's")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="entries to train")
    parser.add_argument("--workers", type=int, default=1, help="processes (%(default)s)")
    parser.add_argument("--out", metavar="DIR", help="in place of the file's")
    parser.add_argument("--table", action="store_true", help="train nothing, show what is there")
    parser.add_argument(
        "--results", metavar="DIR", help="where table, data and picture go (the sweep's folder)"
    )
    parser.add_argument(
        "--into",
        metavar="PAGE.md",
        help="also put the tables between its `<!-- results: val -->` and `<!-- end -->`",
    )
    parser.set_defaults(more=[])


def run(args: argparse.Namespace) -> None:
    """Train what is not trained yet, then show and write the results.

    Raises:
        ConfigError: the sweep is malformed, or a folder was begun with another config, or runs
            failed.
        WorkerError: a worker process was killed.
    """
    if args.workers < 1:
        raise ConfigError(f"`--workers` must be positive, got {args.workers}.")
    from rich.console import Console

    from llmrec_pl.sweeping.plan import read_sweep

    console = Console(width=None if Console().is_terminal else 160)
    sweep = read_sweep(args.sweep, {"seeds": args.seeds, "out": args.out})
    runs = sweep.runs(args.more)
    if args.only:
        unknown = set(args.only) - set(sweep.entries)
        if unknown:
            raise ConfigError(
                f"no entry {sorted(unknown)} in {args.sweep!r}; it has {list(sweep.entries)}."
            )
        runs = [r for r in runs if r.name in args.only]
    untuned = [name for name in sweep.untuned if not args.only or name in args.only]
    if sweep.tuned and untuned:
        console.print(
            f"note: no values in {sweep.tuned} for: {', '.join(untuned)}",
            markup=False,
            soft_wrap=True,
        )
    failed = [] if args.table else _train(runs, args.workers, console)
    _show(sweep, runs, args, console)
    if failed:
        raise ConfigError(
            f"{len(failed)} of {len(runs)} runs failed; the trace of the first lies in "
            f"'{failed[0].folder / 'error.txt'}'. The same command tries them again."
        )


def _train(runs: list[Run], n_workers: int, console: Console) -> list[Run]:
    """Train, with a line a finished run and a bar on a terminal; return what failed."""
    from rich.progress import Progress

    from llmrec_pl.sweeping.execute import execute
    from llmrec_pl.sweeping.report import selecting
    from llmrec_pl.workers import run_all

    for planned in runs:
        planned.check_unchanged()
    todo = [r for r in runs if not r.finished]
    console.print(f"{len(runs)} runs, {len(runs) - len(todo)} of them finished", highlight=False)
    queue, failed = iter(todo), []
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("runs", total=len(runs), completed=len(runs) - len(todo))

        def done(finished: Run, error: str | None) -> None:
            bar.advance(task)
            record = finished.metrics("val")
            found = error or "no metrics"
            if error is None and record is not None:
                metric = selecting(record["metrics"])
                found = f"validation {metric} {record['metrics'][metric]:.4f}"
            else:
                failed.append(finished)
            line = f"{finished.name}, seed {finished.seed}: {found}"
            bar.print(line, markup=False, highlight=False, soft_wrap=True)

        try:
            if todo:
                run_all(n_workers, execute, lambda: next(queue, None), done)
        except KeyboardInterrupt:
            bar.print("the same command goes on where this one was stopped")
            raise
    return failed


def _show(sweep: Sweep, runs: list[Run], args: argparse.Namespace, console: Console) -> None:
    """Print the tables and write every form of the results."""
    from llmrec_pl.sweeping.report import (
        entries_of,
        plot_results,
        put_into,
        results_markdown,
        results_table,
        write_per_user,
        write_results,
    )

    splits = ("val", "test") if sweep.test else ("val",)
    by_split = {split: entries_of(runs, split) for split in splits}
    by_split = {split: entries for split, entries in by_split.items() if entries}
    if not by_split:
        console.print("no run is finished yet.")
        return
    folder = Path(args.results) if args.results else sweep.out
    stem = Path(args.sweep).stem
    data = _data(runs)
    names = {"val": "validation", "test": "test"}
    some = sorted({r.candidates for r in runs} - {"all"})
    among = "".join(f", {candidates} items among themselves" for candidates in some)
    for split, entries in by_split.items():
        title = f"{names[split]} split of {data['name']}{among}"
        console.print(results_table(entries, title))
        plot_results(_made(folder) / f"{stem}_{split}.png", entries, title)
        write_per_user(folder / f"{stem}_{split}_per_user.parquet", runs, split)
    write_results(folder / f"{stem}.json", by_split, data)
    tables = {split: results_markdown(entries) for split, entries in by_split.items()}
    if args.into:
        put_into(Path(args.into), tables)
    console.print(f"  results: {folder}/{stem}*", highlight=False, soft_wrap=True)
    if len(next(iter(by_split.values()))) > 1:
        console.print(
            f"test the differences user by user with\n  python -m llmrec_pl compare {sweep.out}",
            highlight=False,
            soft_wrap=True,
        )


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _data(runs: list[Run]) -> dict[str, Any]:
    """Return name and fingerprint of the data; all finished runs must share them.

    Raises:
        ConfigError: naming two runs of different data.
    """
    found = [(r, m["data"]) for r in runs if (m := r.metrics("val")) is not None]
    first, data = found[0]
    for other, theirs in found[1:]:
        if theirs != data:
            raise ConfigError(
                f"'{first.folder}' was trained on {data}, '{other.folder}' on {theirs}; one table "
                "needs one data set. Name another `--out`."
            )
    return dict(data)
