"""Writing checkpoints atomically, reading them safely, and leaving one where training stops."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from llmrec_pl.errors import CheckpointMismatchError, LLMRecError

if TYPE_CHECKING:
    from types import FrameType


CHECKPOINT_KEY = "llmrec_pl"
"""The entry of a checkpoint that names model, data set and batch plan."""
_STEPS_BETWEEN_VOTES = 8
"""Steps after which several processes compare whether one of them wants a checkpoint."""


class CheckpointWriteError(LLMRecError, OSError):
    """A checkpoint could not be written; the one before it is untouched."""


def read_checkpoint(
    path: str | Path,
    map_location: Any = "cpu",  # noqa: ANN401
    mmap: bool = False,
) -> dict[str, Any]:
    """Load a checkpoint that may hold nothing but tensors and plain data.

    Args:
        path: a file that ``fit`` wrote.
        map_location: where tensors go.
        mmap: leave tensors on disk until they are used.

    Raises:
        CheckpointMismatchError: the file is missing, damaged, holds other objects, or was not
            written by this package.
    """
    if not Path(path).is_file():
        raise CheckpointMismatchError(
            f"no checkpoint at {str(path)!r}; `fit` prints the paths it writes, under "
            "`<run>/checkpoints/`."
        )
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location, weights_only=True, mmap=mmap)
    except Exception as error:  # torch raises many kinds for damaged files
        first = str(error).splitlines()[0]
        raise CheckpointMismatchError(
            f"cannot read checkpoint {str(path)!r}: {first}. It is damaged or no checkpoint; "
            "resume from another one in its folder."
        ) from error
    if not isinstance(checkpoint, dict) or CHECKPOINT_KEY not in checkpoint:
        raise CheckpointMismatchError(
            f"{str(path)!r} was not written by llmrec_pl: it names no model and no data set."
        )
    return checkpoint


class BestCheckpoint(ModelCheckpoint):
    """Keeps the selected epoch, also across a resume into another run folder.

    Lightning forgets the best score when the folder changes, and would then call a later, worse
    epoch the best. Here the best checkpoint so far is copied into the new folder.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Remember whether this is training: only that goes on from an earlier state."""
        self._fitting = stage == "fit"
        super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over score and file of the best epoch so far."""
        if not self._fitting:
            return
        state = dict(state_dict)
        if state.get("dirpath") != self.dirpath and self.dirpath:
            moved = {path: self._take_over(path) for path in state["best_k_models"]}
            state["dirpath"] = self.dirpath
            state["best_k_models"] = {moved[p]: v for p, v in state["best_k_models"].items()}
            for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
                state[key] = moved.get(state[key], "")
        super().load_state_dict(state)

    def _take_over(self, path: str) -> str:
        target = Path(str(self.dirpath)) / Path(path).name
        if not Path(path).is_file() and not target.is_file():
            raise CheckpointMismatchError(
                f"the best checkpoint so far, {path!r}, is gone, so the best epoch could not be "
                "kept on resume; put it back beside the checkpoint you resume from, or train anew."
            )
        self._copy(path, target)
        return str(target)

    @staticmethod
    @rank_zero_only
    def _copy(path: str, target: Path) -> None:
        if Path(path).is_file() and Path(path).resolve() != target.resolve():
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
            shutil.copyfile(path, temporary)
            temporary.replace(target)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs, and renames: a checkpoint exists whole or not at all."""

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: Any,  # noqa: ANN401
        storage_options: Any | None = None,  # noqa: ANN401
    ) -> None:
        """Write a checkpoint file.

        Raises:
            CheckpointWriteError: the disk is full or the folder cannot be written.
        """
        target = Path(path)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except (OSError, RuntimeError) as error:
            temporary.unlink(missing_ok=True)
            raise CheckpointWriteError(
                f"cannot write checkpoint {str(target)!r}: {error}. Earlier checkpoints are "
                "untouched; free disk space or give `--trainer.default_root_dir` another disk, "
                "then resume with `--ckpt_path`."
            ) from error

    def load_checkpoint(
        self,
        path: Any,  # noqa: ANN401
        map_location: Any | None = lambda storage, loc: storage,  # noqa: ANN401
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint without unpickling arbitrary objects."""
        return read_checkpoint(path, map_location)


class ResumeCheckpoint(Checkpoint):
    """Keeps ``last.ckpt``, from which training goes on as if it had never stopped.

    It is written at the end of every epoch, every `every_minutes` or `every_n_steps` within
    one, and after the step in which Ctrl-C or SIGTERM arrived; a second Ctrl-C stops at once.
    Parameters, optimizer state and validation metrics of a resumed run are those of an
    uninterrupted one, bit for bit.

    As a `Checkpoint` it comes after all other callbacks, the selection of the best epoch included,
    whose state it keeps.

    Within an epoch it is never written on the last step, where Lightning would lose the
    epoch's validation; the end of the epoch writes it.

    Args:
        every_minutes: minutes between two writes within an epoch; 0 turns them off.
        every_n_steps: steps between two writes within an epoch; 0 turns them off.
    """

    def __init__(self, every_minutes: float = 10.0, every_n_steps: int = 0) -> None:
        self.every_minutes, self.every_n_steps = every_minutes, every_n_steps
        self._stop: signal.Signals | None = None
        self._due = self._stopping = False
        self._before: dict[signal.Signals, Any] = {}
        self._last = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Catch the signals; later than Lightning, which exits with status 0 on SIGTERM."""
        self._stop, self._last = None, time.monotonic()
        for number in (signal.SIGINT, signal.SIGTERM):
            if number is signal.SIGTERM and "SLURM_JOB_ID" in os.environ:
                continue  # Lightning requeues the job
            try:
                self._before[number] = signal.signal(number, self._on_signal)
            except ValueError:
                return  # only the main thread may

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._stop is not None:
            raise KeyboardInterrupt
        self._stop = signal.Signals(number)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """Write if it is time to, and stop if a signal came to any process.

        Raises:
            KeyboardInterrupt: after a signal, once the checkpoint is written.
        """
        started = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        counted = self.every_n_steps > 0 and started % self.every_n_steps == 0
        timed = self.every_minutes > 0 and time.monotonic() - self._last >= 60 * self.every_minutes
        stop = self._stop is not None
        if trainer.world_size > 1:
            # All ranks take part in a write, so they must agree; asking costs a collective.
            ask = started % _STEPS_BETWEEN_VOTES == 0
            stop = ask and trainer.strategy.reduce_boolean_decision(stop, all=False)
            timed = ask and trainer.strategy.reduce_boolean_decision(timed, all=False)
        self._stopping = self._stopping or stop
        self._due = self._due or counted or timed or self._stopping
        step = started % int(trainer.num_training_batches)
        # Gradients that wait for the next optimizer step are in no checkpoint.
        if self._due and step and step % trainer.accumulate_grad_batches == 0:
            self._write(trainer)
            self._stop_if_asked(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write, after the epoch's validation."""
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._write(trainer)
        self._stop_if_asked(trainer)

    def _write(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.path(trainer))
        self._due, self._last = False, time.monotonic()

    def _stop_if_asked(self, trainer: L.Trainer) -> None:
        if not self._stopping:
            return
        path = self.path(trainer)  # on every process: the folder is broadcast
        if trainer.is_global_zero:
            print(f"\nstopped; resume with `--ckpt_path {path}`", flush=True)
        raise KeyboardInterrupt

    @staticmethod
    def path(trainer: L.Trainer) -> Path:
        """Return where the checkpoint of this run lies; ask on every process."""
        return Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints" / "last.ckpt"

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
