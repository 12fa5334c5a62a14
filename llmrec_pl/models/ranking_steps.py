"""What an evaluation asks of a model: vectors to rank by, kept while it lasts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import lightning as L
import torch
from torch import Tensor, nn


class Representations(NamedTuple):
    """User and item vectors whose inner product is the score.

    Attributes:
        user: ``[n, d]``.
        item: ``[m, d]``.
    """

    user: Tensor
    item: Tensor


class RankingSteps(L.LightningModule):
    """The steps of ``validate``, ``test`` and ``predict``; knows no K, no mask and no metric."""

    item_embedding: nn.Embedding
    row_wise = False
    """Whether `encode_rows` reads no rows but those asked for, which sharded tables profit from."""
    _evaluated: Representations | None = None

    def encode(self) -> Representations:
        """Return all users and items; see `Recommender`."""
        raise NotImplementedError

    def encode_rows(self, users: Tensor, items: Tensor) -> Representations:
        """Return some users and items; see `Recommender`."""
        raise NotImplementedError

    def ranking_rows(self, users: Tensor) -> Representations:
        """Return vectors of some users ``[n]`` and of all items, in float32, to rank by.

        By default those of `encode`, which runs once and is kept until an evaluation begins or
        ends. A model whose vectors are too long for that may override it with any vectors of the
        same inner products.
        """
        by_row = self.row_wise and self.device_mesh is not None
        # Half precision leaves few distinct scores among thousands of items.
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            if self._evaluated is None:
                vectors = self._all_items(users[:0]) if by_row else self.encode()
                self._evaluated = Representations(*(x.detach().float() for x in vectors))
            if by_row:  # the user table need not fit into one process
                user = self.encode_rows(users, users[:0]).user.float()
                return Representations(user, self._evaluated.item)
        return Representations(self._evaluated.user[users], self._evaluated.item)

    def _all_items(self, no_user: Tensor) -> Representations:
        every = torch.arange(self.item_embedding.num_embeddings, device=no_user.device)
        return self.encode_rows(no_user, every)

    def _evaluation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Representations:
        rows = self.ranking_rows(batch.get("group_user", batch["user"]))
        if "group_user" not in batch:
            return rows
        own = torch.isin(batch["group_user"], batch["user"])
        return Representations(rows.user[own], rows.item)

    validation_step = _evaluation_step  # type: ignore[assignment]
    test_step = _evaluation_step  # type: ignore[assignment]
    predict_step = _evaluation_step

    def _drop_evaluated(self) -> None:
        self._evaluated = None

    on_validation_epoch_start = _drop_evaluated
    on_test_epoch_start = _drop_evaluated
    on_predict_epoch_start = _drop_evaluated
    on_validation_epoch_end = _drop_evaluated
    on_test_epoch_end = _drop_evaluated
    on_predict_epoch_end = _drop_evaluated
