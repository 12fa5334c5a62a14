"""Progress of training: a rich bar on a terminal, one plain line every half minute elsewhere."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console

from llmrec_pl.progress import PLAIN_INTERVAL


class ProgressLines(L.Callback):
    """Prints where training stands, at most once every `interval` seconds.

    Args:
        monitor: the validation metric to show.
        interval: seconds between two lines.
    """

    def __init__(self, monitor: str, interval: float = PLAIN_INTERVAL) -> None:
        self.monitor, self.interval = monitor, interval
        self._last = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:  # noqa: ANN401
        """Print a line if it is time to."""
        if not trainer.is_global_zero or time.monotonic() - self._last < self.interval:
            return
        self._last = time.monotonic()
        started = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        epoch, step = divmod(started - 1, int(trainer.num_training_batches))
        value = trainer.callback_metrics.get(self.monitor)
        seen = "" if value is None else f", {self.monitor} {float(value):.4f}"
        print(
            f"epoch {epoch + 1}/{trainer.max_epochs}, step {step + 1}/"
            f"{trainer.num_training_batches}{seen}",
            flush=True,
        )


def training_progress(monitor: str) -> L.Callback:
    """Return the bar that suits where the output goes."""
    if Console().is_terminal:
        return RichProgressBar(leave=False)
    return ProgressLines(monitor)
