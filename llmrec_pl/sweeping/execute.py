"""Trains one run of a sweep in a worker process, going on where it was stopped."""

from __future__ import annotations

import io
import traceback
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

import yaml

from llmrec_pl.checkpoints import read_checkpoint
from llmrec_pl.errors import CheckpointMismatchError
from llmrec_pl.progress_bar import worker_progress
from llmrec_pl.training import run as train
from llmrec_pl.workers import in_one_line

if TYPE_CHECKING:
    from pathlib import Path

    from llmrec_pl.sweeping.plan import Run


def execute(run: Run) -> str | None:
    """Fit, validate and, where wanted, test a run, as far as that is not done.

    Returns:
        None, or what went wrong; the trace lies in ``error.txt`` of the run.
    """
    try:
        # A run that is stopped prints how `fit` resumes it; a sweep resumes by its own command.
        with redirect_stdout(io.StringIO()):
            _complete(run)
    except Exception as error:  # one run that fails must not end the others
        (run.folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        return in_one_line(error)
    (run.folder / "error.txt").unlink(missing_ok=True)
    return None


def _complete(run: Run) -> None:
    if run.metrics("val") is None:
        _fit(run)
    if run.test and run.metrics("test") is None:
        _evaluate(run, "test")


def _evaluate(run: Run, subcommand: str) -> None:
    best = run.folder / "checkpoints" / "best.ckpt"
    files = ["--config", str(run.folder / "config.yaml"), "--ckpt_path", str(best)]
    # Folders that were begun with Lightning's CSVLogger would lose their curve to it.
    train([subcommand, *files, "--trainer.logger", "false"], quiet=True)


def _fit(run: Run) -> None:
    overlay = run.folder / "sweep.yaml"
    overlay.write_text(yaml.safe_dump({"trainer": _trainer(run.folder)}), encoding="utf-8")
    arguments = [*run.arguments, "--config", str(overlay)]
    last = run.folder / "checkpoints" / "last.ckpt"
    if last.is_file():
        if _had_ended(last):
            _evaluate(run, "validate")
            return
        arguments += ["--ckpt_path", str(last)]
    shown = worker_progress(f"{run.name}, seed {run.seed}")
    train(["fit", *arguments], callbacks=shown, quiet=True)


def _trainer(folder: Path) -> dict[str, Any]:
    """Put the run's files into its folder, and nothing else."""
    where = {"folder": str(folder)}
    return {
        "enable_progress_bar": False,
        "default_root_dir": str(folder),
        "logger": {"class_path": "llmrec_pl.metrics_file.MetricsFile", "init_args": where},
    }


def _had_ended(last: Path) -> bool:
    """Say whether early stopping had ended a run that was cut off before its final validation."""
    try:
        callbacks = read_checkpoint(last, mmap=True)["callbacks"]
    except CheckpointMismatchError:
        last.unlink()  # cut off in its making: begin anew
        return False
    states = [state for name, state in callbacks.items() if name.startswith("EarlyStopping")]
    return any(state["wait_count"] >= state["patience"] for state in states)
