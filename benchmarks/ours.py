"""Trains one trial of this project's models in-process, with the trainer's own callbacks."""

from __future__ import annotations

import functools
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from benchmarks.trials import Outcome
from llmrec_pl.data.datamodule import RecDataModule
from llmrec_pl.evaluation.callback import AllRankingEvaluator
from llmrec_pl.models.base import Recommender
from llmrec_pl.models.ease import EASE
from llmrec_pl.models.item_knn import ItemKNN
from llmrec_pl.models.lightgcn import LightGCN
from llmrec_pl.models.llmrec import LLMRec
from llmrec_pl.models.mf import MF
from llmrec_pl.models.ngcf import NGCF
from llmrec_pl.training import _quieten

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.trials import Trial

MODELS: dict[str, type[Recommender]] = {
    model.__name__: model for model in (MF, NGCF, LightGCN, LLMRec, EASE, ItemKNN)
}
MONITOR = "val/recall@20"
DATA_SETTINGS = (
    "batch_size",
    "sampling",
    "exclude_features",
    "augmentation",
    "llm_edge_rate",
    "llm_parts",
)
LABELS = ("condition", "content_id")
"""Settings that tell trials apart and are no arguments."""


class _CpuClock(L.Callback):
    """Adds up CPU seconds of whole fits and of their evaluations."""

    def __init__(self) -> None:
        self.total = self.evaluation = 0.0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start = time.process_time()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.total += time.process_time() - self._start

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._evaluation_start = time.process_time()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.evaluation += time.process_time() - self._evaluation_start


def train(trial: Trial, root: Path, more: Sequence[L.Callback] = ()) -> Outcome:
    """Train until validation Recall@20 stops rising, and return the best epoch's vectors.

    Args:
        trial: ``settings`` holds `DATA_SETTINGS` and arguments of the model; for one that is
            trained by gradients ``lr``, and at will ``optimizer``, a name in `torch.optim`, and
            its ``weight_decay``.
        root: canonical data set folder.
        more: further callbacks, which come last.
    """
    settings = {k: v for k, v in trial.settings.items() if k not in LABELS}
    data_settings: dict[str, Any] = {k: settings.pop(k) for k in DATA_SETTINGS if k in settings}
    if not trial.is_solved:
        settings["optimizer"] = functools.partial(
            getattr(torch.optim, settings.pop("optimizer", "AdamW")),
            lr=settings.pop("lr"),
            weight_decay=settings.pop("weight_decay", 0.0),
            fused=True,
        )
    data = RecDataModule(str(root), seed=trial.budget.seed, **data_settings)
    model_class = MODELS[trial.model]
    model = model_class(**settings)
    evaluator, clock = AllRankingEvaluator(), _CpuClock()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = ModelCheckpoint(
            folder, "best", MONITOR, mode="max", enable_version_counter=False
        )
        stopping = EarlyStopping(MONITOR, patience=trial.budget.patience, mode="max")
        trainer = _trainer(trial, folder, [clock, evaluator, stopping, checkpoint, *more])
        trainer.fit(model, data)
        best = model_class.from_checkpoint(checkpoint.best_model_path, data.dataset, data.features)
    with torch.no_grad():
        user, item = best.encode()
    history = [record["recall@20"] for record in evaluator.history]
    best_index = history.index(max(history))
    reported = {k: evaluator.history[best_index][k] for k in ("recall@20", "ndcg@20")}
    cost = {
        "epochs": trainer.current_epoch,
        "best_epoch": int(evaluator.history[best_index]["epoch"]) + 1,
        "evaluations": len(history),
        "cpu_seconds_training": clock.total - clock.evaluation,
        "cpu_seconds_evaluation": clock.evaluation,
    }
    return Outcome(user.detach().numpy(), item.detach().numpy(), cost, reported)


def _trainer(trial: Trial, folder: str, callbacks: list[L.Callback]) -> L.Trainer:
    _quieten()
    return L.Trainer(
        accelerator="cpu",
        max_epochs=trial.budget.max_epochs,
        check_val_every_n_epoch=trial.budget.eval_every,
        callbacks=callbacks,
        default_root_dir=folder,
        logger=False,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
