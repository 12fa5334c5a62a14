"""LATTICE: mine latent item graphs from what items look and read like."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.data.features import FeatureStore
from llmrec_pl.models.base import Representations
from llmrec_pl.models.item_graph import ItemGraphRecommender


class LATTICE(ItemGraphRecommender):
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

    Arguments: those of `ItemGraphRecommender`; with `n_item_layers` 0, L of the paper, the model is
    LightGCN.
    """

    modality_weight: nn.Parameter | None

    def build(self, dataset: InteractionDataset, features: FeatureStore) -> None:
        """Create embeddings, graphs, and a weight for each modality where there are several."""
        super().build(dataset, features)
        n = len(self.item_graphs)
        self.modality_weight = nn.Parameter(torch.zeros(n)) if n > 1 else None

    def encode(self) -> Representations:
        """Return LightGCN's vectors, those of items moved along the mined graph."""
        return self.moved(self._mined() if self.item_graphs else None)

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
