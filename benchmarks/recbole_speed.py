"""What an epoch costs here and in RecBole: MF and LightGCN on ML-100K, turn by turn.

Both libraries train with the same batch size, width and layers and rank the whole catalogue after
every epoch, each in a process of one thread. They take turns epoch by epoch, so whatever else the
machine does meets both alike. `quality_ml100k` shows that neither pays for speed with quality.

    python -m benchmarks.recbole_speed
    python -m benchmarks.recbole_speed --epochs 3 --skip-recbole --data data/demo --out quick.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # CPU seconds of one thread are comparable

import lightning as L
from rich.progress import track
from rich.table import Table

from benchmarks import comparison, recbole_side
from benchmarks.memory import peak_gib
from benchmarks.pace import Pace
from benchmarks.quality_ml100k import prepare
from benchmarks.trials import Budget, Trial, write_json
from llmrec_pl.data.dataset import InteractionDataset

ROOT = Path(__file__).parents[1]
WARM = 2
"""Epochs that do not count: each library sets itself up in them."""
BATCH = {"batch_size": 2048, "lr": 3e-3}
MODELS: dict[str, dict[str, dict[str, Any]]] = {
    "MF": {
        "llmrec_pl": {"optimizer": "Adam", "weight_decay": 3e-5, "l2_weight": 0.0, **BATCH},
        "recbole": {"weight_decay": 3e-5, **BATCH},
    },
    "LightGCN": {
        "llmrec_pl": {"n_layers": 2, "l2_weight": 1e-3, **BATCH},
        "recbole": {"n_layers": 2, "reg_weight": 1e-3, "require_pow": True, **BATCH},
    },
}
ENDLESS = Budget(max_epochs=100_000, patience=100_000)


class _Paced(L.Callback):
    """Ends an epoch after its evaluation, the last of what Lightning does in it."""

    def __init__(self) -> None:
        self.pace = Pace(sys.stdin, sys.stdout, peak_gib)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.pace.wait()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.pace.done(float(trainer.callback_metrics["val/recall@20"]))


def main() -> None:
    """Let both libraries take turns on each model, print a table, write JSON and a picture."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recbole_speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=Path("data/ml-100k"), metavar="DIR")
    parser.add_argument("--source", type=Path, metavar="PATH", help="raw ML-100K, else fetched")
    parser.add_argument("--epochs", type=int, default=20, help="epochs that count (%(default)s)")
    parser.add_argument("--ours", choices=MODELS, help=argparse.SUPPRESS)
    comparison.add_arguments(parser, "recbole_speed")
    args = parser.parse_args()
    with comparison.errors_for_people():
        if args.ours:
            _train_ours(args.ours, args.data)
            return
        if not args.skip_recbole:
            prepare(args.data, args.source)
        models = [name for name in MODELS if not args.models or name in args.models]
        found = {model: turn_by_turn(model, args) for model in models}
    show(found)
    write_json(args.out, {"epochs": args.epochs, "settings": MODELS, "models": found})
    plot(found, args.out.with_suffix(".png"))
    comparison.console.print(f"written to {args.out} and {args.out.with_suffix('.png')}")


def _train_ours(model: str, data: Path) -> None:
    from benchmarks import ours  # the process that waits needs no models

    trial = Trial("llmrec_pl", model, MODELS[model]["llmrec_pl"], ENDLESS)
    ours.train(trial, data, [_Paced()])


def turn_by_turn(model: str, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Run epochs of both libraries alternately.

    Args:
        model: its name here.
        args: of the command line.

    Returns:
        By library: median CPU and wall seconds an epoch with its evaluation, peak memory in MiB,
        and the Recall@20 after the last epoch.
    """
    args.work.mkdir(parents=True, exist_ok=True)
    workers = {"llmrec_pl": _ours(model, args)}
    if not args.skip_recbole:
        workers["recbole"] = _theirs(model, args)
    reports: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
    try:
        for epoch in track(range(WARM + args.epochs), model, console=comparison.console):
            # Who goes first alternates too.
            for name in sorted(workers, reverse=bool(epoch % 2)):
                reports[name].append(_one_epoch(name, workers[name]))
    finally:
        for worker in workers.values():
            worker.kill()  # Lightning takes a polite signal for a wish to save and go on
            worker.wait()
    return {name: _summary(rows[WARM:]) for name, rows in reports.items()}


def _one_epoch(name: str, worker: subprocess.Popen[str]) -> dict[str, float]:
    assert worker.stdin is not None
    assert worker.stdout is not None
    try:
        print("go", file=worker.stdin, flush=True)
    except BrokenPipeError:
        sys.exit(f"{name} ended before its epoch; its last words are above.")
    for line in worker.stdout:
        if line.startswith("{"):
            report: dict[str, float] = json.loads(line)
            return report
    sys.exit(f"{name} ended in the middle of an epoch; its last words are above.")


def _summary(rows: list[dict[str, float]]) -> dict[str, float]:
    clocks = ("cpu_seconds", "wall_seconds")
    medians = {key: statistics.median(row[key] for row in rows) for key in clocks}
    return {**medians, "peak_mib": rows[-1]["peak_mib"], "recall@20": rows[-1]["recall@20"]}


def _ours(model: str, args: argparse.Namespace) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.recbole_speed", "--ours", model]
    return _start([*command, "--data", str(args.data)], ROOT)


def _theirs(model: str, args: argparse.Namespace) -> subprocess.Popen[str]:
    python = recbole_side.prepare_environment(args.environment)
    files = recbole_side.write_atomic_files(InteractionDataset.load(args.data), args.work / "data")
    job = {
        "data": str(files.resolve()),
        "name": recbole_side.DATA_NAME,
        "model": comparison.COUNTERPARTS[model],
        "settings": MODELS[model]["recbole"],
        "budget": dataclasses.asdict(ENDLESS),
        "out": str((args.work / "out").resolve()),
        "paced": True,
    }
    worker = _start([str(python), str(recbole_side.WORKER)], args.work)
    assert worker.stdin is not None
    print(json.dumps(job), file=worker.stdin, flush=True)
    return worker


def _start(command: list[str], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder
    )


def show(found: dict[str, dict[str, dict[str, float]]]) -> None:
    """Print a row for each model and library, with ratios to RecBole."""
    table = Table(title="an epoch with its evaluation (medians)")
    for column in ("model", "library", "CPU s", "wall s", "peak MiB", "R@20", "faster (CPU)"):
        table.add_column(column, justify="left" if column in ("model", "library") else "right")
    for model, sides in found.items():
        for library, row in sides.items():
            other = sides.get("recbole")
            ratio = other["cpu_seconds"] / row["cpu_seconds"] if other else float("nan")
            table.add_row(
                model,
                library,
                f"{row['cpu_seconds']:.3f}",
                f"{row['wall_seconds']:.3f}",
                f"{row['peak_mib']:.0f}",
                f"{row['recall@20']:.4f}",
                f"{ratio:.2f} x" if other else "-",
            )
    comparison.console.print(table)


def plot(found: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """Draw CPU seconds an epoch as bars beside each other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3.2), layout="constrained")
    axes = figure.subplots()
    libraries = sorted({library for sides in found.values() for library in sides})
    for number, library in enumerate(libraries):
        places = [i + (number - (len(libraries) - 1) / 2) * 0.35 for i in range(len(found))]
        seconds = [sides[library]["cpu_seconds"] for sides in found.values()]
        bars = axes.bar(places, seconds, width=0.33, label=library)
        axes.bar_label(bars, fmt="%.2f", padding=2)
    axes.set_xticks(range(len(found)), list(found))
    axes.set_ylabel("CPU seconds, training and evaluation")
    axes.set_title("one epoch on ML-100K, one thread")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
