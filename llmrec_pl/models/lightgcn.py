"""LightGCN."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.data.features import FeatureStore
from llmrec_pl.errors import ConfigError
from llmrec_pl.graph import BipartiteGraph
from llmrec_pl.models.base import OptimizerCallable, Representations, SchedulerCallable
from llmrec_pl.models.objective import Loss, ObjectiveRecommender, Similarity


class LightGCN(ObjectiveRecommender):
    """Average the embeddings of 0..L propagations over the interaction graph.

    Source: Eq. (3), (4), (8) of He et al., "LightGCN", SIGIR 2020:
    ``E(l+1) = D^-1/2 A D^-1/2 E(l)``, the mean of layers 0..L, L2 on the ego embeddings.
    Deviations: none in the mathematics; AdamW instead of Adam; `loss` may be another than BPR.

    Args:
        n_layers: L; with 0 layers the model is MF.
        embedding_dim: width of the embeddings.
        embedding_std: standard deviation of the normal initial embeddings.
        l2_weight: weight of the L2 term on the batch's ego embeddings.
        loss: see `ObjectiveRecommender`, as are the next four.
        similarity: "inner" or "cosine".
        temperature: of "sampled_softmax".
        margin: of "ccl".
        negative_weight: of "ccl".
        optimizer: see `Recommender`.
        lr_scheduler: see `Recommender`.
    """

    def __init__(
        self,
        n_layers: int = 3,
        embedding_dim: int = 64,
        embedding_std: float = 0.1,
        l2_weight: float = 1e-4,
        loss: Loss = "bpr",
        similarity: Similarity = "inner",
        temperature: float = 0.1,
        margin: float = 0.8,
        negative_weight: float = 100.0,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: SchedulerCallable | None = None,
    ) -> None:
        super().__init__(
            embedding_dim,
            l2_weight,
            loss,
            similarity,
            temperature,
            margin,
            negative_weight,
            optimizer,
            lr_scheduler,
        )
        if n_layers < 0:
            raise ConfigError(f"`n_layers` must not be negative, got {n_layers}.")
        self.n_layers, self.embedding_std = n_layers, embedding_std

    def build(self, dataset: InteractionDataset, features: FeatureStore) -> None:
        """Create the embedding tables and the symmetric graph."""
        self.make_embeddings(dataset)
        nn.init.normal_(self.user_embedding.weight, std=self.embedding_std)
        nn.init.normal_(self.item_embedding.weight, std=self.embedding_std)
        self.graph = BipartiteGraph(
            dataset.graph_edges(), dataset.n_users, dataset.n_items, "symmetric"
        )

    def represent(self) -> Representations:
        """Propagate L times and average the layers."""
        ego = self.user_embedding.weight, self.item_embedding.weight
        return Representations(*self.graph.mean_of_layers(*ego, self.n_layers))

    def encode_rows(self, users: Tensor, items: Tensor) -> Representations:
        """Propagate over the rows that these users and items need."""
        ego = self.user_embedding.weight, self.item_embedding.weight
        rows = self.graph.mean_of_layers_at(*ego, self.n_layers, users, items)
        return self.scaled(Representations(*rows))
