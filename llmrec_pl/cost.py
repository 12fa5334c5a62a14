"""What a training run costs: seconds of its epochs and of its evaluations."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

from llmrec_pl.evaluation.callback import run_directory

if TYPE_CHECKING:
    from pathlib import Path

_Clock = tuple[float, float]
_SUMS = (
    "epochs",
    "evaluations",
    "cpu_training",
    "wall_training",
    "cpu_evaluation",
    "wall_evaluation",
)


def _now() -> _Clock:
    return time.process_time(), time.perf_counter()


class RunCost(L.Callback):
    """Adds up CPU and wall seconds of training epochs, and of evaluations between them.

    CPU seconds count all threads of the process. A resumed run goes on counting. Written as
    ``metrics/cost.json`` where training ends.
    """

    def __init__(self) -> None:
        self.epochs = self.evaluations = 0
        self.cpu_training = self.wall_training = 0.0
        self.cpu_evaluation = self.wall_evaluation = 0.0
        self._started: _Clock = (0.0, 0.0)
        self._evaluating: _Clock = (0.0, 0.0)
        self._fitting = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Remember whether this is training: only that goes on from an earlier state."""
        self._fitting = stage == "fit"

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._started = _now()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add an epoch, without its evaluation."""
        self._add_training()
        self.epochs += 1

    def _add_training(self) -> None:
        now = _now()
        self.cpu_training += now[0] - self._started[0]
        self.wall_training += now[1] - self._started[1]
        self._started = now

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop counting training."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._add_training()
            self._evaluating = self._started

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add an evaluation."""
        if trainer.state.fn == TrainerFn.FITTING:
            now = _now()
            self.cpu_evaluation += now[0] - self._evaluating[0]
            self.wall_evaluation += now[1] - self._evaluating[1]
            self.evaluations += 1
            self._started = now

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the record, asked on every process since the logger's folder is broadcast."""
        folder = run_directory(trainer) / "metrics"
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            _write(folder, self.record())

    def state_dict(self) -> dict[str, Any]:
        """Keep the sums for a resumed run."""
        return {name: getattr(self, name) for name in _SUMS}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the sums of a checkpoint, where training does."""
        for name in _SUMS if self._fitting else ():
            setattr(self, name, state_dict[name])

    def record(self) -> dict[str, float]:
        """Return the sums and the seconds of one epoch and of one evaluation."""
        epochs, evaluations = max(self.epochs, 1), max(self.evaluations, 1)
        return {
            **self.state_dict(),
            "cpu_seconds_per_epoch": self.cpu_training / epochs,
            "wall_seconds_per_epoch": self.wall_training / epochs,
            "cpu_seconds_per_evaluation": self.cpu_evaluation / evaluations,
            "wall_seconds_per_evaluation": self.wall_evaluation / evaluations,
        }


def _write(folder: Path, record: dict[str, float]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "cost.json.tmp"
    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    temporary.replace(folder / "cost.json")
