"""MMGCN: one graph convolution for each modality of the items."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.data.features import Feature, FeatureStore
from llmrec_pl.errors import ConfigError
from llmrec_pl.graph import BipartiteGraph
from llmrec_pl.models.base import OptimizerCallable, Recommender, Representations, SchedulerCallable
from llmrec_pl.models.layers import ByFeature, FeatureTable, item_modalities

Normalise = Literal["projected", "features", "none"]
NEGATIVE_SLOPE = 0.01
"""Of every LeakyReLU, as in the released code; the paper gives none."""


def _linear(n_in: int, n_out: int, *, bias: bool) -> nn.Linear:
    linear = nn.Linear(n_in, n_out, bias=bias)
    nn.init.xavier_normal_(linear.weight)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


class MMGCNLayer(nn.Module):
    """Aggregate the neighbours in one modality's graph and combine them with the node itself.

    ``h = LeakyReLU(W1 mean_nb(x))``, ``x_hat = LeakyReLU(W2 x) + id`` and
    ``x' = LeakyReLU(W3 h + x_hat)``.

    Source: Eq. (1), (5) and (7), Sec. 2.3 of Wei et al., "MMGCN", MM 2019.
    Deviations: W2 and W3 have biases, as in the released code.

    Args:
        n_in: width of x.
        n_out: width of x' and of id.
    """

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.neighbour = _linear(n_in, n_out, bias=False)
        self.itself = _linear(n_in, n_out, bias=True)
        self.combine = _linear(n_out, n_out, bias=True)

    def forward(
        self, x: Representations, ids: Representations, graph: BipartiteGraph
    ) -> Representations:
        """Return x' of users and items.

        Args:
            x: of users and items, each ``[n, n_in]``.
            ids: their id embeddings, each ``[n, n_out]``.
            graph: with norm "mean".
        """
        # W1 before the mean, which commutes with it: the sparse product is then n_out wide.
        to_user, to_item = graph.propagate(self.neighbour(x.user), self.neighbour(x.item))
        return Representations(
            self._combine(x.user, to_user, ids.user), self._combine(x.item, to_item, ids.item)
        )

    def _combine(self, x: Tensor, neighbours: Tensor, ids: Tensor) -> Tensor:
        h = F.leaky_relu(neighbours, NEGATIVE_SLOPE)
        x_hat = F.leaky_relu(self.itself(x), NEGATIVE_SLOPE) + ids
        return F.leaky_relu(self.combine(h) + x_hat, NEGATIVE_SLOPE)


class ModalityGCN(nn.Module):
    """The part of MMGCN that one modality has for itself.

    Args:
        feature: the modality.
        n_users: number of users.
        latent_dim: width of projected features and of the users' preference.
        embedding_dim: width of every layer's output.
        n_layers: number of layers.
        normalise: see `MMGCN`.
    """

    def __init__(
        self,
        feature: Feature,
        n_users: int,
        latent_dim: int,
        embedding_dim: int,
        n_layers: int,
        normalise: Normalise,
    ) -> None:
        super().__init__()
        self.unit_start = normalise == "projected"
        self.table = FeatureTable(feature, normalise=normalise == "features")
        self.projection = _linear(feature.dim, latent_dim, bias=True)
        self.preference = nn.Embedding(n_users, latent_dim)
        nn.init.xavier_normal_(self.preference.weight)
        widths = [latent_dim, *[embedding_dim] * n_layers]
        self.layers = nn.ModuleList(MMGCNLayer(*pair) for pair in itertools.pairwise(widths))

    def forward(self, ids: Representations, graph: BipartiteGraph) -> Representations:
        """Return the modality's vectors of users and items, each ``[n, embedding_dim]``."""
        item = self.table.expand(self.projection(self.table.values))
        x = Representations(self.preference.weight, item)
        if self.unit_start:
            x = Representations(F.normalize(x.user), F.normalize(x.item))
        for layer in self.layers:
            x = layer(x, ids, graph)
        return x


class MMGCN(Recommender):
    """Convolve each modality over the interaction graph, and average the modalities.

    In each modality m an item starts as its projected feature, a user as a preference that is
    learned; L layers (see `MMGCNLayer`) add the id embedding again and again, which all modalities
    share. The score is the inner product of the means over m of the last layer.

    Source: Sec. 2.2 to 2.4, Eq. (1), (5), (7) and (8) of Wei et al., "MMGCN: Multi-modal Graph
    Convolution Network for Personalized Recommendation of Micro-video", MM 2019.

    Deviations:
        trained tensors: id embeddings and preferences learn, as in the paper; in the released code
            they are no parameters and stay at their initial values.
        aggregation and combination: mean and element-wise, the defaults; max aggregation and the
            concatenation are left out.
        modalities: averaged as in the released code; the paper sums, which scales all scores alike.
        projection: each modality is projected to `latent_dim`, as the released code does with the
            visual one; the paper starts from raw features. W1 maps to the width of the output.
        normalisation: preferences and projected features are scaled to unit length, as in the
            released code; the paper scales nothing, which is ``normalise="none"``.
        L2: on the batch's id embeddings and its users' preferences.
        optimizer: AdamW instead of Adam.
        unknown rows: an item without a feature starts as zeros in that modality.

    Parameters: ``user_embedding.weight`` and ``item_embedding.weight`` (id), and for each feature
    ``modality.<feature>.``: ``projection.weight`` and ``.bias``, ``preference.weight``, and for
    each layer l from 0 ``layers.<l>.neighbour.weight`` (W1), ``layers.<l>.itself.weight`` (W2)
    and ``.bias``, ``layers.<l>.combine.weight`` (W3) and ``.bias``.

    Args:
        n_layers: L, at least 1.
        embedding_dim: width d of the id embeddings and of every layer's output.
        latent_dim: width of projected features and of preferences.
        normalise: which rows are scaled to unit length: "projected" features and preferences,
            raw "features", or "none".
        l2_weight: weight of the L2 term.
        optimizer: see `Recommender`.
        lr_scheduler: see `Recommender`.

    Raises:
        ConfigError: a value is out of range, or the items have no modality.
    """

    modality: ByFeature

    def __init__(
        self,
        n_layers: int = 3,
        embedding_dim: int = 64,
        latent_dim: int = 256,
        normalise: Normalise = "projected",
        l2_weight: float = 1e-4,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: SchedulerCallable | None = None,
    ) -> None:
        super().__init__(embedding_dim, l2_weight, optimizer, lr_scheduler)
        for name, value in (("n_layers", n_layers), ("latent_dim", latent_dim)):
            if value < 1:
                raise ConfigError(f"`{name}` must be at least 1, got {value}.")
        self.n_layers, self.latent_dim = n_layers, latent_dim
        if normalise not in get_args(Normalise):
            raise ConfigError(
                f"`normalise` must be one of {get_args(Normalise)}, got {normalise!r}."
            )
        self.normalise = normalise

    def build(self, dataset: InteractionDataset, features: FeatureStore) -> None:
        """Create id embeddings, the graph, and each modality's own part."""
        modalities = item_modalities(features, "MMGCN")
        self.make_embeddings(dataset)
        self.graph = BipartiteGraph(dataset.graph_edges(), dataset.n_users, dataset.n_items, "mean")
        self.modality = ByFeature(
            {
                feature.name: ModalityGCN(
                    feature,
                    dataset.n_users,
                    self.latent_dim,
                    self.embedding_dim,
                    self.n_layers,
                    self.normalise,
                )
                for feature in modalities
            }
        )

    def encode(self) -> Representations:
        """Return the mean over the modalities of their last layers, ``[n, d]``."""
        ids = Representations(self.user_embedding.weight, self.item_embedding.weight)
        encoded = [gcn(ids, self.graph) for gcn in self.modality.values()]
        return Representations(
            torch.stack([x.user for x in encoded]).mean(dim=0),
            torch.stack([x.item for x in encoded]).mean(dim=0),
        )

    def ego_rows(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the id embeddings of a batch, and beside its users' their preferences."""
        user, positive, negative = super().ego_rows(batch)
        preferences = [gcn.preference(batch["user"]) for gcn in self.modality.values()]  # type: ignore[operator]
        return torch.cat([user, *preferences], dim=1), positive, negative
