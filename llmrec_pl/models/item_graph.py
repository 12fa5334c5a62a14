"""The latent graph of items in one modality, as LATTICE and MICRO mine it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from llmrec_pl.data.features import Feature
from llmrec_pl.errors import ConfigError
from llmrec_pl.graph import SparseOperator, weighted_sum
from llmrec_pl.models.layers import FeatureTable
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


def check_item_graphs(
    n_layers: int, n_item_layers: int, n_neighbours: int, original_weight: float
) -> None:
    """Refuse settings of the two encoders that mean nothing.

    Raises:
        ConfigError: naming the argument.
    """
    for name, value in (("n_layers", n_layers), ("n_item_layers", n_item_layers)):
        if value < 0:
            raise ConfigError(f"`{name}` must not be negative, got {value}.")
    if n_neighbours < 1:
        raise ConfigError(
            f"`n_neighbours` must be at least 1, the item itself, got {n_neighbours}."
        )
    if not 0 <= original_weight <= 1:
        raise ConfigError(f"`original_weight` must be in [0, 1], got {original_weight!r}.")
