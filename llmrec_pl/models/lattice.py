"""LATTICE: mine latent item graphs from what items look and read like."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.data.features import FeatureStore
from llmrec_pl.graph import BipartiteGraph
from llmrec_pl.models.base import OptimizerCallable, Recommender, Representations, SchedulerCallable
from llmrec_pl.models.item_graph import LatentItemGraphs, check_item_graphs
from llmrec_pl.models.layers import item_modalities


class LATTICE(Recommender):
    """Add to LightGCN's item vectors a direction gathered over one mined graph of items.

    ``item = LightGCN(q) + h / ||h||`` with ``h = A^L q`` and ``A = sum_m a_m A_m``, where q are
    the item embeddings, A_m the latent graph of modality m (see `LatentItemGraph`) and a the
    softmax of learned weights. Users are LightGCN's.

    Source: Sec. 3 of Zhang et al., "Mining Latent Structures for Multimedia Recommendation",
    MM 2021, Eq. (3) to (12), with LightGCN as the collaborative filter.

    Deviations:
        order: each modality's learned graph is normalised before the modalities are mixed, as in
            the paper; the released code mixes first.
        interaction graph: symmetric without self-loops, as LightGCN; the released code takes
            ``D^-1 (A + I)``.
        L2: on the batch's ego embeddings; the released code takes its final vectors.
        item graphs: see `LatentItemGraph`.

    Parameters: ``user_embedding.weight``, ``item_embedding.weight``,
    ``item_graphs.<m>.projection.weight`` and ``.bias`` unless `original_weight` is 1, and
    ``modality_weight`` where there are several; m counts the modalities by name.

    Args:
        embedding_dim: width of embeddings and projections.
        n_layers: layers of LightGCN.
        n_item_layers: L, layers over the item graph; with 0 the model is LightGCN.
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
    modality_weight: nn.Parameter | None

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
        check_item_graphs(n_layers, n_item_layers, n_neighbours, original_weight)
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
        self.modality_weight = nn.Parameter(torch.zeros(len(used))) if len(used) > 1 else None

    def refresh(self) -> None:
        """Choose the neighbours in the learned graphs anew."""
        self.item_graphs.refresh()

    def encode(self) -> Representations:
        """Return LightGCN's vectors, those of items moved along the mined graph."""
        ego = self.user_embedding.weight, self.item_embedding.weight
        user, item = self.graph.mean_of_layers(*ego, self.n_layers)
        if self.item_graphs:
            item = item + F.normalize(self._mined(), dim=1)
        return Representations(user, item)

    def _mined(self) -> Tensor:
        """Return h, ``[n_items, d]``."""
        item = self.item_embedding.weight
        share = (
            item.new_ones(1) if self.modality_weight is None else self.modality_weight.softmax(0)
        )
        learned = self.item_graphs.learned_weights()
        for _ in range(self.n_item_layers):
            passed = [g(item, w) for g, w in zip(self.item_graphs, learned, strict=True)]
            item = torch.stack([a * x for a, x in zip(share, passed, strict=True)]).sum(dim=0)
        return item
