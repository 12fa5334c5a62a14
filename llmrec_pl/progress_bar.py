"""Progress of training: a rich bar on a terminal, one plain line every half minute elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console

from llmrec_pl.progress import PLAIN_INTERVAL

if TYPE_CHECKING:
    from typing import TextIO


class ProgressLines(L.Callback):
    """Prints where training stands, at most once every `interval` seconds.

    The validation metric that it shows is the one that selects the checkpoint.

    Args:
        label: what is trained, where several runs share the output.
        stream: where to print; standard output if None.
        interval: seconds between two lines.
    """

    def __init__(
        self, label: str = "", stream: TextIO | None = None, interval: float = PLAIN_INTERVAL
    ) -> None:
        self.label, self.stream, self.interval = label, stream, interval
        self._last = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:  # noqa: ANN401
        """Print a line if it is time to."""
        if not trainer.is_global_zero or time.monotonic() - self._last < self.interval:
            return
        self._last = time.monotonic()
        started = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        epoch, step = divmod(started - 1, int(trainer.num_training_batches))
        print(
            f"{self.label}{': ' if self.label else ''}epoch {epoch + 1}/{trainer.max_epochs}, "
            f"step {step + 1}/{trainer.num_training_batches}{_metric(trainer)}",
            file=self.stream or sys.stdout,
            flush=True,
        )


def _metric(trainer: L.Trainer) -> str:
    """Return the last and the best value of the monitored metric, as far as they are known."""
    selection = trainer.checkpoint_callback
    monitor, best = (getattr(selection, n, None) for n in ("monitor", "best_model_score"))
    known = {monitor: trainer.callback_metrics.get(str(monitor)), f"best {monitor}": best}
    return "".join(f", {name} {float(v):.4f}" for name, v in known.items() if v is not None)


def training_progress() -> L.Callback:
    """Return the bar that suits where the output goes."""
    if Console().is_terminal:
        return RichProgressBar(leave=False)
    return ProgressLines()


def worker_progress(label: str) -> list[L.Callback]:
    """Return what shows a run that trains in a worker process: lines on standard error.

    Nothing where that is a terminal: the parent's bar has it.

    Args:
        label: tells the run from those of the other workers.
    """
    if Console(stderr=True).is_terminal:
        return []
    return [ProgressLines(label, sys.stderr, PLAIN_INTERVAL)]
