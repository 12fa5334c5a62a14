"""One trial: a training run that reports each validation, and stops where it is told to."""

from __future__ import annotations

import dataclasses
import shutil
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import optuna
import yaml
from lightning.pytorch.trainer.states import TrainerFn

from llmrec_pl.progress_bar import worker_progress
from llmrec_pl.tuning.storage import open_study
from llmrec_pl.workers import in_one_line

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class TrialJob:
    """What a worker process needs to run a trial.

    Attributes:
        study: folder of the study.
        trial_id: the storage's id of the trial.
        arguments: of `fit`, without the trial's own values.
        overlay: the trial's values as a config.
        metric: validation metric, such as ``recall@20``.
        seconds: CPU seconds that training and its evaluations may take.
        warmup: first evaluation after which a trial may be pruned.
    """

    study: Path
    trial_id: int
    arguments: Sequence[str]
    overlay: dict[str, Any]
    metric: str
    seconds: float
    warmup: int


class TrialWatch(L.Callback):
    """Reports validation metrics to the study, and stops a poor or an expensive trial."""

    def __init__(self, trial: optuna.Trial, metric: str, seconds: float) -> None:
        self.trial, self.metric, self.seconds = trial, metric, seconds
        self.values: list[float] = []
        self.stopped = ""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._start = time.process_time()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:  # noqa: ANN401
        """Stop in the middle of an epoch where the time is up and a value is known."""
        if self.values and self._spent() > self.seconds:
            self._stop(trainer, "time")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report, and ask whether the trial is worth going on with."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self.values.append(float(trainer.callback_metrics[f"val/{self.metric}"]))
        # The best value so far: a curve that is past its peak has lost nothing.
        self.trial.report(max(self.values), step=len(self.values))
        if self._spent() > self.seconds:
            self._stop(trainer, "time")
        elif self.trial.should_prune():
            self._stop(trainer, "pruned")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say why training ended, before a checkpoint overwrites what early stopping knows."""
        stopping = trainer.early_stopping_callback
        ended = "early stopping" if stopping and stopping.stopped_epoch else "epochs"
        self.stopped = self.stopped or ended

    def _spent(self) -> float:
        return time.process_time() - self._start

    def _stop(self, trainer: L.Trainer, why: str) -> None:
        self.stopped = self.stopped or why
        trainer.should_stop = True


def run_trial(job: TrialJob) -> dict[str, Any]:
    """Train once; the trial's state is told to the study by the caller.

    Returns:
        ``value`` (None where it failed), ``stopped``, ``error``, ``epochs``, ``best_epoch``,
        ``curve`` and ``cpu_seconds``.
    """
    from llmrec_pl.training import run

    study = open_study(job.study, warmup=job.warmup)
    trial = optuna.trial.Trial(study, job.trial_id)
    folder = job.study / f"trial-{trial.number}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = folder / "trial.yaml"
    config.write_text(yaml.safe_dump(job.overlay), encoding="utf-8")
    watch = TrialWatch(trial, job.metric, job.seconds)
    started, error = time.process_time(), None
    fixed = {
        "trainer.default_root_dir": str(folder),
        "trainer.enable_progress_bar": "false",
        "trainer.logger": "false",
        "checkpoint.monitor": f"val/{job.metric}",
        "early_stopping.monitor": f"val/{job.metric}",
    }
    try:
        run(
            [
                "fit",
                *job.arguments,
                *("--config", str(config)),
                *(x for name, value in fixed.items() for x in (f"--{name}", value)),
            ],
            callbacks=[watch, *worker_progress(f"{job.study.name}, trial {trial.number}")],
            quiet=True,
        )
    except Exception as failure:  # a diverged or impossible setting ends its own trial only
        error = in_one_line(failure)
        (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    values = watch.values
    return {
        "value": max(values) if values and error is None else None,
        "stopped": watch.stopped or "error",
        "error": error,
        "epochs": len(values),
        "best_epoch": values.index(max(values)) + 1 if values else 0,
        "curve": [round(v, 6) for v in values],
        "cpu_seconds": round(time.process_time() - started, 2),
    }
