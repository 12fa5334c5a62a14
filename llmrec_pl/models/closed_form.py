"""What models without gradients share: they are solved at the start of an epoch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.data.features import FeatureStore
from llmrec_pl.errors import ConfigError
from llmrec_pl.models.base import Recommender, Representations


class ClosedForm(Recommender, ABC):
    """A recommender that is solved, not trained by gradients; a subclass implements `solve`.

    What `solve` finds lies in persistent buffers that `build` made, so checkpoints, resume and
    every evaluation work as for other models. Training takes one step, or one solve an epoch
    where `solves_once` is False.

    Args:
        embedding_dim: see `Recommender`, for models that have vectors.
        l2_weight: weight of the squared norm of what is solved for.
    """

    solves_once: ClassVar[bool] = True

    def __init__(self, embedding_dim: int = 64, l2_weight: float = 0.0) -> None:
        super().__init__(embedding_dim, l2_weight)
        self.automatic_optimization = False

    @abstractmethod
    def solve(self) -> None:
        """Compute the persistent buffers from the train interactions."""

    def refresh(self) -> None:
        """Solve, before an epoch's first step."""
        with torch.no_grad():
            self.solve()

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return no terms: nothing is minimised by steps."""
        return {}

    def configure_model(self) -> None:
        """Build, in one process only.

        Raises:
            ConfigError: training was asked for on several devices.
        """
        trainer = self.trainer
        if trainer.state.fn == TrainerFn.FITTING and trainer.world_size > 1:
            raise ConfigError(
                f"{type(self).__name__} is solved in one process, got {trainer.world_size}; give "
                "`--trainer.devices 1`."
            )
        super().configure_model()

    def configure_optimizers(self) -> list[Any]:
        """Return no optimizer."""
        return []

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:  # type: ignore[override]
        """Count the step, and end training where there is nothing left to solve."""
        # Lightning counts optimizer steps, and saves no checkpoint where there were none.
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        progress.increment_ready()
        progress.increment_completed()
        if self.solves_once:
            self.trainer.should_stop = True


class ItemItem(ClosedForm):
    """Scores ``x_u B`` with the user's train row x_u and weights B between items.

    As a two-tower the user vector is x_u and the item vector a column of B, ``[n_items]`` each.
    Evaluation ranks a batch of users at a time and never holds all users' rows.
    """

    history: Tensor
    history_start: Tensor

    @abstractmethod
    def weights_to(self, items: Tensor) -> Tensor:
        """Return columns of B for some items ``[m]`` as rows, ``[m, n_items]``."""

    @abstractmethod
    def scores(self, users: Tensor) -> Tensor:
        """Return the scores of all items for some users ``[n]``, ``[n, n_items]``."""

    def build(self, dataset: InteractionDataset, features: FeatureStore) -> None:
        """Keep the train interactions, with the LLM's where they are to be in the graph."""
        user, item = dataset.graph_edges()
        shape = dataset.n_users, dataset.n_items
        self.interactions = sp.csr_array((np.ones(len(user)), (user, item)), shape=shape)
        start = self.interactions.indptr.astype(np.int64)
        self.register_buffer("history", torch.from_numpy(item), persistent=False)
        self.register_buffer("history_start", torch.from_numpy(start), persistent=False)

    def history_of(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """Return the history items of some users ``[n]`` in one row, and each user's count."""
        start = self.history_start[users]
        count = self.history_start[users + 1] - start
        shift = start - (count.cumsum(0) - count)
        place = torch.arange(int(count.sum()), device=users.device)
        return self.history[place + shift.repeat_interleave(count)], count

    def history_rows(self, users: Tensor) -> Tensor:
        """Return the train rows of some users ``[n]``, ``[n, n_items]`` of zeros and ones."""
        items, count = self.history_of(users)
        row = torch.arange(len(users), device=users.device).repeat_interleave(count)
        rows = torch.zeros(len(users), self.interactions.shape[1], device=users.device)
        rows[row, items] = 1.0
        return rows

    def encode(self) -> Representations:
        """Return all train rows and all columns of B, which takes n_users x n_items floats."""
        n_users, n_items = self.interactions.shape
        users = torch.arange(n_users, device=self.history.device)
        items = torch.arange(n_items, device=self.history.device)
        return self.encode_rows(users, items)

    def encode_rows(self, users: Tensor, items: Tensor) -> Representations:
        """Return the train rows of users and the columns of B of items."""
        weights = self.weights_to(items)
        return Representations(self.history_rows(users).to(weights.dtype), weights)

    def ranking_rows(self, users: Tensor) -> Representations:
        """Return unit vectors for the users and, for each item, the score each of them gives."""
        with torch.no_grad(), torch.autocast(users.device.type, enabled=False):
            scores = self.scores(users).float()
        return Representations(torch.eye(len(users), device=scores.device), scores.T)
