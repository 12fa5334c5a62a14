"""Matrix factorisation."""

from __future__ import annotations

from torch import Tensor

from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.data.features import FeatureStore
from llmrec_pl.models.base import Representations
from llmrec_pl.models.objective import ObjectiveRecommender


class MF(ObjectiveRecommender):
    """Score a pair by the inner product of two embeddings.

    Source: Rendle et al., "BPR: Bayesian Personalized Ranking from Implicit Feedback", UAI 2009.
    Deviations: no item bias, as in the paper's Sec. 4.3.1; AdamW instead of plain SGD; `loss`
    may be another than BPR.
    """

    row_wise = True

    def build(self, dataset: InteractionDataset, features: FeatureStore) -> None:
        """Create the two embedding tables."""
        self.make_embeddings(dataset)

    def represent(self) -> Representations:
        """Return the tables themselves."""
        return Representations(self.user_embedding.weight, self.item_embedding.weight)

    def encode_rows(self, users: Tensor, items: Tensor) -> Representations:
        """Look the rows up."""
        return self.scaled(Representations(self.user_embedding(users), self.item_embedding(items)))
