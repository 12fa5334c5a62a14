"""VBPR: visual Bayesian personalised ranking, over any item modalities."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.data.features import FeatureStore
from llmrec_pl.errors import ConfigError
from llmrec_pl.models.base import OptimizerCallable, Recommender, Representations, SchedulerCallable
from llmrec_pl.models.layers import ByFeature, EmbeddingTable, FeatureTable, item_modalities


class VBPR(Recommender):
    """Add to matrix factorisation an inner product with projected item features, and item biases.

    ``y = p_u . q_i + t_u . (W f_i) + b_i + beta . f_i``, as the inner product of
    ``[p_u, t_u, 1]`` and ``[q_i, W f_i, b_i + beta . f_i]``.

    Source: Eq. (4) and (5), Sec. 3.2 of He and McAuley, "VBPR: Visual Bayesian Personalized Ranking
    from Implicit Feedback", AAAI 2016.

    Deviations:
        modalities: of several, f_i is the concatenation, so ``W f_i`` and ``beta . f_i`` are sums
            over modalities and t_u is one vector; the paper has one modality, of any kind here.
        normalisation: features are scaled to unit length, each modality apart, because raw ones of
            large norm drown the other terms; ``normalise_features=False`` is the paper's.
        global and user bias: left out, as they cancel in every comparison of two items.
        L2: half the squares, of p_u, t_u, q_i and b_i as a mean over the batch's triplets; W and
            beta share one weight.
        optimizer: AdamW instead of plain SGD.
        unknown rows: an item without a feature gets zeros from that modality.

    Parameters: ``user_embedding.weight`` (p), ``item_embedding.weight`` (q),
    ``user_preference.weight`` (t), ``item_bias.weight`` (b), ``projection.<feature>.weight`` (W)
    and ``feature_bias.<feature>.weight`` (beta).

    Args:
        embedding_dim: width of p and q.
        projection_dim: width of t and of projected features.
        normalise_features: scale the rows of each modality to unit length.
        l2_weight: weight of the L2 term on embeddings and biases.
        projection_l2_weight: weight of the L2 term on W and beta.
        sparse_gradients: gradients of p, t, q and b hold the rows of the batch alone; with
            `LazyAdamW` a step costs the same for tables of any length.
        optimizer: see `Recommender`.
        lr_scheduler: see `Recommender`.

    Raises:
        ConfigError: a width is not positive, or the items have no modality.
    """

    row_wise = True
    tables: ByFeature
    projection: ByFeature
    feature_bias: ByFeature

    def __init__(
        self,
        embedding_dim: int = 64,
        projection_dim: int = 64,
        normalise_features: bool = True,
        l2_weight: float = 1e-2,
        projection_l2_weight: float = 1e-2,
        sparse_gradients: bool = False,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: SchedulerCallable | None = None,
    ) -> None:
        super().__init__(embedding_dim, l2_weight, optimizer, lr_scheduler)
        if projection_dim < 1:
            raise ConfigError(f"`projection_dim` must be positive, got {projection_dim}.")
        self.projection_dim, self.normalise_features = projection_dim, normalise_features
        self.projection_l2_weight = projection_l2_weight
        self.sparse_gradients = sparse_gradients

    def build(self, dataset: InteractionDataset, features: FeatureStore) -> None:
        """Create embeddings, biases, and for each modality its table, projection and bias."""
        modalities = item_modalities(features, "VBPR")
        self.make_embeddings(dataset)
        sparse = self.sparse_gradients
        self.user_preference = EmbeddingTable(dataset.n_users, self.projection_dim, sparse=sparse)
        nn.init.xavier_uniform_(self.user_preference.weight)
        self.item_bias = EmbeddingTable(dataset.n_items, 1, sparse=sparse)
        nn.init.zeros_(self.item_bias.weight)
        self.tables, self.projection = ByFeature(), ByFeature()
        self.feature_bias = ByFeature()
        for feature in modalities:
            self.tables[feature.name] = FeatureTable(feature, normalise=self.normalise_features)
            # A bias of the projection would not be the paper's, and would reach unknown rows.
            projection = nn.Linear(feature.dim, self.projection_dim, bias=False)
            nn.init.xavier_uniform_(projection.weight)
            bias = nn.Linear(feature.dim, 1, bias=False)
            nn.init.zeros_(bias.weight)
            self.projection[feature.name], self.feature_bias[feature.name] = projection, bias

    def encode(self) -> Representations:
        """Concatenate the terms of all users and items, ``[n, d + projection_dim + 1]``."""
        user = self._user_terms(self.user_embedding.weight, self.user_preference.weight)
        projected = [
            self._table(name).expand(self._project(name, self._table(name).values))
            for name in self.tables
        ]
        item = self._item_terms(self.item_embedding.weight, self.item_bias.weight, projected)
        return Representations(user, item)

    def encode_rows(self, users: Tensor, items: Tensor) -> Representations:
        """Look the rows up, and project the distinct features of these items only."""
        user = self._user_terms(self.user_embedding(users), self.user_preference(users))
        projected = [
            self._table(name).project_rows(items, partial(self._project, name))
            for name in self.tables
        ]
        item = self._item_terms(self.item_embedding(items), self.item_bias(items), projected)
        return Representations(user, item)

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the base's terms, and the L2 of W and beta."""
        terms = super().losses(batch)
        if self.projection_l2_weight > 0:
            weights = [*self.projection.parameters(), *self.feature_bias.parameters()]
            squares = torch.stack([weight.square().sum() for weight in weights]).sum()
            terms["projection_l2"] = self.projection_l2_weight * squares / 2
        return terms

    def ego_rows(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return p and t of a batch's users, and q and b of its items."""
        user, positive, negative = super().ego_rows(batch)
        return (
            torch.cat([user, self.user_preference(batch["user"])], dim=1),
            torch.cat([positive, self.item_bias(batch["pos_item"])], dim=1),
            torch.cat([negative, self.item_bias(batch["neg_item"])], dim=1),
        )

    def _table(self, name: str) -> FeatureTable:
        return cast("FeatureTable", self.tables[name])

    def _project(self, name: str, rows: Tensor) -> Tensor:
        """Return W f beside beta . f, ``[n, projection_dim + 1]``."""
        return torch.cat([self.projection[name](rows), self.feature_bias[name](rows)], dim=1)

    @staticmethod
    def _user_terms(embedding: Tensor, preference: Tensor) -> Tensor:
        return torch.cat([embedding, preference, embedding.new_ones(len(embedding), 1)], dim=1)

    @staticmethod
    def _item_terms(embedding: Tensor, bias: Tensor, projected: list[Tensor]) -> Tensor:
        terms = torch.stack(projected).sum(dim=0)
        return torch.cat([embedding, terms[:, :-1], terms[:, -1:] + bias], dim=1)
