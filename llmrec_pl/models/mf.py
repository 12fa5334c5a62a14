"""Matrix factorisation."""

from __future__ import annotations

import torch
from torch import Tensor

from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.data.features import FeatureStore
from llmrec_pl.models.base import OptimizerCallable, Representations, SchedulerCallable
from llmrec_pl.models.objective import Loss, ObjectiveRecommender, Similarity


class MF(ObjectiveRecommender):
    """Score a pair by the inner product of two embeddings.

    Source: Rendle et al., "BPR: Bayesian Personalized Ranking from Implicit Feedback", UAI 2009.
    Deviations: no item bias, as in the paper's Sec. 4.3.1; AdamW instead of plain SGD; `loss`
    may be another than BPR.

    Args:
        embedding_dim: width of the embeddings.
        l2_weight: weight of the L2 term on the batch's embeddings.
        loss: see `ObjectiveRecommender`, as are the next four.
        similarity: "inner" or "cosine".
        temperature: of "sampled_softmax".
        margin: of "ccl".
        negative_weight: of "ccl".
        sparse_gradients: gradients hold the rows of the batch alone; with `LazyAdamW` a step
            costs the same for tables of any length.
        optimizer: see `Recommender`.
        lr_scheduler: see `Recommender`.
    """

    row_wise = True

    def __init__(
        self,
        embedding_dim: int = 64,
        l2_weight: float = 1e-4,
        loss: Loss = "bpr",
        similarity: Similarity = "inner",
        temperature: float = 0.1,
        margin: float = 0.8,
        negative_weight: float = 100.0,
        sparse_gradients: bool = False,
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
        self.sparse_gradients = sparse_gradients

    def build(self, dataset: InteractionDataset, features: FeatureStore) -> None:
        """Create the two embedding tables."""
        self.make_embeddings(dataset)

    def represent(self) -> Representations:
        """Return the tables themselves."""
        return Representations(self.user_embedding.weight, self.item_embedding.weight)

    def encode_rows(self, users: Tensor, items: Tensor) -> Representations:
        """Look the rows up."""
        return self.scaled(Representations(self.user_embedding(users), self.item_embedding(items)))
