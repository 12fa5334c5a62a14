"""The latent graph of items in one modality, and what LATTICE and MICRO, which mine it, share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.data.features import Feature, FeatureStore
from llmrec_pl.errors import ConfigError
from llmrec_pl.graph import BipartiteGraph, SparseOperator, weighted_sum
from llmrec_pl.models.base import OptimizerCallable, Recommender, Representations, SchedulerCallable
from llmrec_pl.models.layers import FeatureTable, item_modalities
from llmrec_pl.neighbours import (
    constant_weights,
    nearest_neighbours,
    neighbour_operator,
    neighbour_weights,
)


class LatentItemGraph(nn.Module):
    """Mix the kNN graph of a feature with that of its learned projection.

    ``A = original_weight * S + (1 - original_weight) * S'``. S joins items by the cosine of the
    raw feature and is constant, S' by that of the projected one: its neighbours change with
    `refresh` only, its weights at every step, with gradient. Both are cut at zero and normalised
    symmetrically. An item without the feature has no edges. Memory is linear in items.

    Source: Sec. 3.1 of Zhang et al., "Mining Latent Structures for Multimedia Recommendation",
    MM 2021, Eq. (3) to (7); the same in MICRO.

    Deviations:
        gradient: the released code rebuilds S' with gradient on the first batch of an epoch and
            leaves it constant on the others; here its weights have gradient on every batch.
        features: constant; the released code trains the raw ones too.
        negative cosines: cut at zero, as in the paper; the released code keeps them.
        itself: an item is always its own first neighbour, also among items of equal features.

    Parameters: ``projection.weight`` and ``.bias``, unless `original_weight` is 1. The neighbours
    of S' are a persistent buffer, so that a resumed run goes on with the same graph.

    Args:
        feature: a modality of items.
        dim: width of the projection.
        n_neighbours: neighbours of an item, itself included.
        original_weight: share of S.
    """

    neighbours: Tensor

    def __init__(
        self, feature: Feature, dim: int, n_neighbours: int, original_weight: float
    ) -> None:
        super().__init__()
        self.n_neighbours, self.original_weight = n_neighbours, original_weight
        table = FeatureTable(feature)
        raw = table.dense()
        neighbours = nearest_neighbours(raw, n_neighbours)
        self.original: SparseOperator | None = None
        if original_weight > 0:
            weight = constant_weights(raw, neighbours)
            self.original = neighbour_operator(neighbours, weight)
        self.learns = original_weight < 1
        if self.learns:
            self.table = table
            self.projection = nn.Linear(table.dim, dim)
            nn.init.xavier_uniform_(self.projection.weight)
            self.register_buffer("neighbours", neighbours)

    def refresh(self) -> None:
        """Choose the neighbours of S' anew."""
        if not self.learns:
            return
        with torch.no_grad(), torch.autocast(self.neighbours.device.type, enabled=False):
            self.neighbours.copy_(nearest_neighbours(self._projected(), self.n_neighbours))

    def learned_weights(self) -> Tensor | None:
        """Return the weights of the edges of S', ``[n_items, k]``; None where nothing learns."""
        return neighbour_weights(self._projected(), self.neighbours) if self.learns else None

    def forward(self, item: Tensor, learned: Tensor | None) -> Tensor:
        """Pass one layer of messages.

        Args:
            item: ``[n_items, d]``.
            learned: what `learned_weights` returned.

        Returns:
            ``A @ item``.
        """
        parts = []
        if self.original is not None:
            parts.append(self.original_weight * self.original(item))
        if learned is not None:
            weight = (1 - self.original_weight) * learned
            parts.append(weighted_sum(self.neighbours, weight, item))
        return torch.stack(parts).sum(dim=0)

    def _projected(self) -> Tensor:
        return self.table.expand(self.projection(self.table.values))


class LatentItemGraphs(nn.ModuleList):
    """One latent graph a modality, in the order of the modalities.

    Args:
        features: modalities of items.
        dim: see `LatentItemGraph`, as the rest.
        n_neighbours: neighbours of an item.
        original_weight: share of the constant graph.
    """

    def __init__(
        self, features: Sequence[Feature], dim: int, n_neighbours: int, original_weight: float
    ) -> None:
        super().__init__(LatentItemGraph(f, dim, n_neighbours, original_weight) for f in features)

    def __iter__(self) -> Iterator[LatentItemGraph]:
        return cast("Iterator[LatentItemGraph]", super().__iter__())

    def refresh(self) -> None:
        """Choose the neighbours in the learned graphs anew."""
        for graph in self:
            graph.refresh()

    def learned_weights(self) -> list[Tensor | None]:
        """Return the weights of the learned edges of each graph."""
        return [graph.learned_weights() for graph in self]


class ItemGraphRecommender(Recommender, ABC):
    """LightGCN whose item vectors move a unit step in a direction mined from graphs of items.

    Args:
        embedding_dim: width of embeddings and projections.
        n_layers: layers of LightGCN.
        n_item_layers: layers over the item graphs; with 0 there are none.
        n_neighbours: neighbours of an item in each graph, itself included.
        original_weight: share of the constant graph of raw features; at 1 none is learned.
        l2_weight: weight of the L2 term on the batch's ego embeddings.
        optimizer: see `Recommender`.
        lr_scheduler: see `Recommender`.

    Raises:
        ConfigError: a value is out of range, or, in `build`, there is no item modality.
    """

    graph: BipartiteGraph
    item_graphs: LatentItemGraphs

    def __init__(
        self,
        embedding_dim: int = 64,
        n_layers: int = 2,
        n_item_layers: int = 1,
        n_neighbours: int = 10,
        original_weight: float = 0.9,
        l2_weight: float = 1e-4,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: SchedulerCallable | None = None,
    ) -> None:
        super().__init__(embedding_dim, l2_weight, optimizer, lr_scheduler)
        for name, value in (("n_layers", n_layers), ("n_item_layers", n_item_layers)):
            if value < 0:
                raise ConfigError(f"`{name}` must not be negative, got {value}.")
        if n_neighbours < 1:
            raise ConfigError(
                f"`n_neighbours` must be at least 1, the item itself, got {n_neighbours}."
            )
        if not 0 <= original_weight <= 1:
            raise ConfigError(f"`original_weight` must be in [0, 1], got {original_weight!r}.")
        self.n_layers, self.n_item_layers = n_layers, n_item_layers
        self.n_neighbours, self.original_weight = n_neighbours, original_weight

    def build(self, dataset: InteractionDataset, features: FeatureStore) -> None:
        """Create embeddings, the interaction graph and a graph of items for each modality."""
        self.make_embeddings(dataset)
        self.graph = BipartiteGraph(dataset.graph_edges(), dataset.n_users, dataset.n_items)
        used = item_modalities(features, type(self).__name__) if self.n_item_layers else []
        self.item_graphs = LatentItemGraphs(
            used, self.embedding_dim, self.n_neighbours, self.original_weight
        )

    def refresh(self) -> None:
        """Choose the neighbours in the learned graphs anew."""
        self.item_graphs.refresh()

    @abstractmethod
    def encode(self) -> Representations:
        """Return LightGCN's vectors, those of items moved: see `moved`."""

    def moved(self, mined: Tensor | None) -> Representations:
        """Return LightGCN's vectors, those of items moved by ``mined / ||mined||``.

        Args:
            mined: ``[n_items, d]``; None moves nothing.
        """
        ego = self.user_embedding.weight, self.item_embedding.weight
        user, item = self.graph.mean_of_layers(*ego, self.n_layers)
        return Representations(user, item if mined is None else item + F.normalize(mined, dim=1))
