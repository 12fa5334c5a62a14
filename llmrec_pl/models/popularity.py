"""Popularity: the same list for everybody."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.data.features import FeatureStore
from llmrec_pl.models.base import Representations
from llmrec_pl.models.closed_form import ClosedForm


class Popularity(ClosedForm):
    """Score an item by its number of train interactions.

    Source: the reference that every recommender must beat.
    Deviations: none.
    """

    popularity: Tensor

    def __init__(self) -> None:
        super().__init__()

    def build(self, dataset: InteractionDataset, features: FeatureStore) -> None:
        """Count the interactions of each item."""
        self.n_users = dataset.n_users
        count = np.bincount(dataset.graph_edges()[1], minlength=dataset.n_items)
        self.register_buffer("popularity", torch.from_numpy(count.astype(np.float32)))

    def solve(self) -> None:
        """Do nothing: the counts are made with the model."""

    def encode(self) -> Representations:
        """Return a 1 for each user, and the counts."""
        user = torch.ones(self.n_users, 1, dtype=self.popularity.dtype, device=self.device)
        return Representations(user, self.popularity.unsqueeze(1))
