"""GRCN: prune the interaction graph by what items look and read like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.data.features import FeatureStore
from llmrec_pl.errors import ConfigError
from llmrec_pl.graph import WeightedBipartiteGraph, segment_softmax
from llmrec_pl.models.base import OptimizerCallable, Recommender, Representations, SchedulerCallable
from llmrec_pl.models.layers import ByFeature, FeatureTable, item_modalities

Confidence = Literal["learned", "none"]


class Prototypes(NamedTuple):
    """One modality after routing.

    Attributes:
        user: prototypes of users, unit rows ``[n_users, modality_dim]``.
        item: projected features of items, unit rows or zeros ``[n_items, modality_dim]``.
        to_user: affinity of each edge among its user's, ``[n_edges]``.
        to_item: affinity of each edge among its item's, ``[n_edges]``.
    """

    user: Tensor
    item: Tensor
    to_user: Tensor
    to_item: Tensor


class GRCN(Recommender):
    """Weight each edge by how well the item's content fits the user's prototype, then propagate.

    Per modality, a user's prototype moves T times towards the features of the items it attends
    to. An edge's weight is its softmaxed affinity times the confidence of the sending node in
    that modality, the largest over the modalities, cut at zero. A GCN on identities runs over
    these weights; the representation is its output beside all prototypes and features.

    Source: Sec. 3.2 to 3.4 of Wei et al., "Graph-Refined Convolutional Network for Multimedia
    Recommendation with Implicit Feedback", MM 2020, and the released code.

    Deviations:
        content: prototypes and features themselves, as in the paper; the released code adds one
            more attentive propagation to each.
        confidence: starts at 1. The released code starts it at small numbers around zero, so
            that nodes negative in all modalities begin cut off, and, as ReLU passes no gradient
            back, stay so.
        identity: not normalised at layer 0; the released code does.
        L2: on the batch's identities alone. Prototypes are normalised, so L2 would not change
            what they say; the released code penalises them and the confidence too.
        loss: `logsigmoid`; the released code's log of a sigmoid overflows.
        missing features: an item without a feature has a zero row, affinity 0 and no bias.

    Parameters: ``user_embedding.weight``, ``item_embedding.weight``,
    ``projection.<modality>.weight`` and ``.bias``, ``preference.<modality>.weight``,
    ``user_confidence``, ``item_confidence``.

    Args:
        embedding_dim: width of the identities.
        modality_dim: width of the prototypes of each modality.
        n_layers: layers of the GCN on identities; 0 leaves MF beside the content.
        n_routing: T, steps of routing.
        confidence: "learned" for each node and modality, "none" for 1 throughout.
        prune: cut negative weights at zero; without it they push away.
        l2_weight: weight of the L2 term on the batch's ego embeddings.
        optimizer: see `Recommender`.
        lr_scheduler: see `Recommender`.

    Raises:
        ConfigError: a value is out of range, or, in `build`, there is no item modality.
    """

    graph: WeightedBipartiteGraph
    tables: ByFeature
    projection: ByFeature
    preference: ByFeature

    def __init__(
        self,
        embedding_dim: int = 64,
        modality_dim: int = 64,
        n_layers: int = 2,
        n_routing: int = 3,
        confidence: Confidence = "learned",
        prune: bool = True,
        l2_weight: float = 1e-4,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: SchedulerCallable | None = None,
    ) -> None:
        super().__init__(embedding_dim, l2_weight, optimizer, lr_scheduler)
        for name, value, least in (
            ("modality_dim", modality_dim, 1),
            ("n_layers", n_layers, 0),
            ("n_routing", n_routing, 0),
        ):
            if value < least:
                raise ConfigError(f"`{name}` must be at least {least}, got {value}.")
        if confidence not in get_args(Confidence):
            raise ConfigError(
                f"`confidence` must be one of {get_args(Confidence)}, got {confidence!r}."
            )
        self.modality_dim, self.n_layers, self.n_routing = modality_dim, n_layers, n_routing
        self.confidence, self.prune = confidence, prune

    def build(self, dataset: InteractionDataset, features: FeatureStore) -> None:
        """Create embeddings, graph, and for each modality its projection and preferences."""
        modalities = item_modalities(features, type(self).__name__)
        self.make_embeddings(dataset)
        self.graph = WeightedBipartiteGraph(dataset.graph_edges(), dataset.n_users, dataset.n_items)
        self.tables = ByFeature({f.name: FeatureTable(f) for f in modalities})
        self.projection = ByFeature()
        self.preference = ByFeature()
        for feature in modalities:
            projection = nn.Linear(feature.dim, self.modality_dim)
            nn.init.xavier_uniform_(projection.weight)
            self.projection[feature.name] = projection
            preference = nn.Embedding(dataset.n_users, self.modality_dim)
            nn.init.xavier_uniform_(preference.weight)
            self.preference[feature.name] = preference
        # Weights that no layer reads would have no gradient, which aborts distributed training.
        if self.confidence == "learned" and self.n_layers > 0:
            self.user_confidence = nn.Parameter(torch.ones(dataset.n_users, len(modalities)))
            self.item_confidence = nn.Parameter(torch.ones(dataset.n_items, len(modalities)))

    def encode(self) -> Representations:
        """Route, refine the graph, propagate identities, and put the content beside them."""
        content = [self._route(name) for name in self.tables]
        user, item = self.user_embedding.weight, self.item_embedding.weight
        if self.n_layers > 0:
            user, item = self.propagate(user, item, *self._edge_weights(content))
        return Representations(
            torch.cat([user, *(c.user for c in content)], dim=1),
            torch.cat([item, *(c.item for c in content)], dim=1),
        )

    def _route(self, name: str) -> Prototypes:
        table, graph = cast("FeatureTable", self.tables[name]), self.graph
        preference = cast("nn.Embedding", self.preference[name]).weight
        # Half precision would leave the softmax over a user's items few distinct values.
        projected = self.projection[name](table.values).to(preference.dtype)
        item = F.normalize(table.expand(F.leaky_relu(projected)))
        user = F.normalize(preference)
        for _ in range(self.n_routing):
            attention = segment_softmax(
                graph.edge_scores(user, item), graph.edge_user, graph.n_users
            )
            user = F.normalize(user + graph.to_user(item, attention))
        affinity = graph.edge_scores(user, item)
        return Prototypes(
            user,
            item,
            segment_softmax(affinity, graph.edge_user, graph.n_users),
            segment_softmax(affinity, graph.edge_item, graph.n_items),
        )

    def _edge_weights(self, content: Sequence[Prototypes]) -> tuple[Tensor, Tensor]:
        """Return the weight of each edge towards its user and towards its item, ``[n_edges]``."""
        to_user = torch.stack([c.to_user for c in content], dim=1)
        to_item = torch.stack([c.to_item for c in content], dim=1)
        if self.confidence == "learned":
            to_user = to_user * self.item_confidence[self.graph.edge_item]
            to_item = to_item * self.user_confidence[self.graph.edge_user]
        to_user, to_item = to_user.amax(dim=1), to_item.amax(dim=1)
        return (to_user.relu(), to_item.relu()) if self.prune else (to_user, to_item)

    def propagate(
        self, user: Tensor, item: Tensor, to_user: Tensor, to_item: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the sum of layers 0..L over the refined graph.

        Args:
            user: ``[n_users, d]``.
            item: ``[n_items, d]``.
            to_user: weight of each edge towards its user, ``[n_edges]``.
            to_item: weight of each edge towards its item, ``[n_edges]``.
        """
        user_sum, item_sum = user, item
        for _ in range(self.n_layers):
            user, item = self.graph.to_user(item, to_user), self.graph.to_item(user, to_item)
            user_sum, item_sum = user_sum + user, item_sum + item
        return user_sum, item_sum
