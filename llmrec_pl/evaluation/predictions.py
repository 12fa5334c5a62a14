"""Writes what `predict` finds: top-K lists with titles, and candidate pools for stage 1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
import polars as pl
import torch

from llmrec_pl.errors import ConfigError
from llmrec_pl.evaluation.callback import datamodule_dataset, run_directory
from llmrec_pl.evaluation.ranking import sparse_rows, top_k

if TYPE_CHECKING:
    import scipy.sparse as sp
    from numpy.typing import NDArray
    from torch import Tensor

    from llmrec_pl.data.dataset import InteractionDataset

Lists = tuple["NDArray[np.int64]", "NDArray[np.int64]", "NDArray[np.float32]"]


class PredictionWriter(L.Callback):
    """Writes a top-K list and a candidate pool C_u for every user.

    Lists leave out what the user is known to like (train and validation); pools leave out train
    items only, since they may know no more than train, and are the input of stage 1.

    Files: ``top_k.parquet`` and ``.csv``, ``candidates.parquet``, and ``predictions.json`` with
    the fingerprints of the model and of the data.

    Args:
        k: length of the lists.
        n_candidates: |C|, size of the pools; 0 writes none.
        out: folder; ``<run>/predictions`` by default.
        item_tile: items scored at once.

    Raises:
        ConfigError: `k`, `n_candidates` or `item_tile` is out of range.
    """

    def __init__(
        self,
        k: int = 20,
        n_candidates: int = 10,
        out: str | None = None,
        item_tile: int = 32_768,
    ) -> None:
        if k < 1 or n_candidates < 0:
            raise ConfigError(
                f"`predictions.k` must be positive and `predictions.n_candidates` not negative, "
                f"got {k} and {n_candidates}."
            )
        if item_tile < 1:
            raise ConfigError(f"`predictions.item_tile` must be positive, got {item_tile}.")
        self.k, self.n_candidates, self.out, self.item_tile = k, n_candidates, out, item_tile
        self.folder: Path | None = None

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the sizes and prepare the masks."""
        self.dataset: InteractionDataset = datamodule_dataset(trainer)
        if max(self.k, self.n_candidates) > self.dataset.n_items:
            raise ConfigError(
                f"`predictions.k` and `predictions.n_candidates` ({self.k}, {self.n_candidates}) "
                f"must not exceed the {self.dataset.n_items} items."
            )
        self.seen = self.dataset.known_items()
        # Kept predictions would hold a copy of the item matrix for every batch.
        trainer.predict_loop.return_predictions = False
        self._lists: list[Lists] = []
        self._pools: list[Lists] = []

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Any,  # noqa: ANN401
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Rank a batch of users."""
        users = batch["user"].cpu().numpy()
        self._lists.append(self._rank(outputs.user, outputs.item, users, self.k, self.seen))
        if self.n_candidates:
            train = self.dataset.train
            pool = self._rank(outputs.user, outputs.item, users, self.n_candidates, train)
            self._pools.append(pool)

    def _rank(
        self, user: Tensor, item: Tensor, users: NDArray[np.int64], k: int, mask: sp.csr_array
    ) -> Lists:
        ids, scores = top_k(user, item, k, sparse_rows(mask, users), self.item_tile)
        return users, ids.cpu().numpy(), scores.cpu().numpy()

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gather all processes' lists and write them on the first."""
        gathered = [_gather(self._lists), _gather(self._pools)]
        # Asked on every process: the logger's folder is broadcast from the first.
        folder = Path(self.out) if self.out else run_directory(trainer) / "predictions"
        fingerprint = pl_module.fingerprint()  # type: ignore[operator]
        if trainer.is_global_zero:
            self._write(folder, gathered[0], gathered[1], trainer, pl_module, fingerprint)
        # No process may leave while the first still writes: it would tear the group down.
        trainer.strategy.barrier()
        self.folder = folder

    def _write(
        self,
        folder: Path,
        rows: list[Lists],
        pools: list[Lists],
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        fingerprint: str,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        lists = self._frame(rows)
        lists.write_parquet(folder / "top_k.parquet")
        lists.write_csv(folder / "top_k.csv")
        if self.n_candidates:
            self._frame(pools).write_parquet(folder / "candidates.parquet")
        record = {
            "model": type(pl_module).__name__,
            "model_fingerprint": fingerprint,
            "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else None,
            "dataset": self.dataset.name,
            "dataset_fingerprint": self.dataset.fingerprint,
            "k": self.k,
            "n_candidates": self.n_candidates,
            "masked_in_lists": ["train", "val"],
            "masked_in_candidates": ["train"],
        }
        (folder / "predictions.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")

    def _frame(self, parts: list[Lists]) -> pl.DataFrame:
        users = np.concatenate([p[0] for p in parts])
        items = np.concatenate([p[1] for p in parts])
        scores = np.concatenate([p[2] for p in parts])
        order = np.argsort(users)
        users, items, scores = users[order], items[order], scores[order]
        known = items.ravel() >= 0
        k = items.shape[1]
        user, item = np.repeat(users, k)[known], items.ravel()[known]
        titles = np.array(self.dataset.titles(), dtype=np.object_)
        return pl.DataFrame(
            {
                "user": user,
                "user_id": self.dataset.user_ids[user].tolist(),
                "rank": np.tile(np.arange(1, k + 1), len(users))[known],
                "item": item,
                "item_id": self.dataset.item_ids[item].tolist(),
                "title": titles[item].tolist(),
                "score": scores.ravel()[known],
            }
        )


def _gather(parts: list[Lists]) -> list[Lists]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return parts
    gathered: list[list[Lists]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(gathered, parts)
    return [part for rank in gathered for part in rank]
