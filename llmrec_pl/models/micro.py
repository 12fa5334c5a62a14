"""MICRO: fuse the modalities' item graphs by attention and contrast."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from llmrec_pl import losses
from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.data.features import FeatureStore
from llmrec_pl.errors import ConfigError
from llmrec_pl.models.base import OptimizerCallable, Representations, SchedulerCallable
from llmrec_pl.models.item_graph import ItemGraphRecommender


class MICRO(ItemGraphRecommender):
    """Add to LightGCN's item vectors a direction fused from one view of items a modality.

    ``h_m = A_m^L q`` over the latent graph of modality m (see `LatentItemGraph`),
    ``h = sum_m softmax_m(v . tanh(W h_m + b)) h_m`` for each item on its own, and
    ``item = LightGCN(q) + h / ||h||``. Each view is contrasted with the fusion, so that h keeps
    what the modalities share. Users are LightGCN's.

    Source: Sec. 3 of Zhang et al., "Latent Structure Mining with Contrastive Modality Fusion for
    Multimedia Recommendation", TKDE 2022, and the released code, with LightGCN as the
    collaborative filter.

    Deviations:
        contrast: over the distinct items of a batch, the mean over them; the released code takes
            every item, hence n_items squared similarities a step. Negatives come from the fusion
            and from the view itself, as there.
        item graphs: see `LatentItemGraph`; interaction graph and L2: see `LATTICE`.

    Parameters: ``user_embedding.weight``, ``item_embedding.weight``,
    ``item_graphs.<m>.projection.weight`` and ``.bias`` unless `original_weight` is 1, and, where
    there are several modalities, ``attention.0.weight``, ``attention.0.bias`` and
    ``attention.2.weight`` for W, b and v; m counts the modalities by name.

    Args:
        embedding_dim: width of embeddings and projections.
        n_layers: layers of LightGCN.
        n_item_layers: L, layers over the item graphs, at least one.
        n_neighbours: neighbours of an item in each graph, itself included.
        original_weight: share of the constant graph of raw features; at 1 none is learned.
        contrast_weight: weight of the contrast, summed over modalities; 0 leaves it out.
        temperature: of the contrast.
        l2_weight: weight of the L2 term on the batch's ego embeddings.
        optimizer: see `Recommender`.
        lr_scheduler: see `Recommender`.

    Raises:
        ConfigError: a value is out of range, or, in `build`, there is no item modality.
    """

    attention: nn.Sequential | None

    def __init__(
        self,
        embedding_dim: int = 64,
        n_layers: int = 2,
        n_item_layers: int = 1,
        n_neighbours: int = 10,
        original_weight: float = 0.9,
        contrast_weight: float = 0.03,
        temperature: float = 0.5,
        l2_weight: float = 1e-4,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: SchedulerCallable | None = None,
    ) -> None:
        super().__init__(
            embedding_dim,
            n_layers,
            n_item_layers,
            n_neighbours,
            original_weight,
            l2_weight,
            optimizer,
            lr_scheduler,
        )
        if n_item_layers == 0:
            raise ConfigError("`n_item_layers` must be at least 1; LightGCN is what is left at 0.")
        if contrast_weight < 0:
            raise ConfigError(f"`contrast_weight` must not be negative, got {contrast_weight!r}.")
        if temperature <= 0:
            raise ConfigError(f"`temperature` must be positive, got {temperature!r}.")
        self.contrast_weight, self.temperature = contrast_weight, temperature

    def build(self, dataset: InteractionDataset, features: FeatureStore) -> None:
        """Create embeddings, graphs, and attention where there are several modalities."""
        super().build(dataset, features)
        self.attention = None
        if len(self.item_graphs) > 1:
            width = self.embedding_dim
            score = nn.Linear(width, 1, bias=False)
            self.attention = nn.Sequential(nn.Linear(width, width), nn.Tanh(), score)

    def encode(self) -> Representations:
        """Return LightGCN's vectors, those of items moved by the fused views."""
        return self.moved(self._fuse(self._views()))

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return BPR, the contrast of each view with the fusion, and L2."""
        views = self._views()
        fused = self._fuse(views)
        user, item = self.moved(fused)
        positive, negative = batch["pos_item"], batch["neg_item"]
        terms = {"bpr": losses.bpr_loss(user[batch["user"]], item[positive], item[negative])}
        if self.contrast_weight > 0:
            seen = torch.unique(torch.cat([positive, negative]))
            contrast = [
                losses.two_view_contrast_loss(view[seen], fused[seen], self.temperature)
                for view in views
            ]
            terms["contrast"] = self.contrast_weight * torch.stack(contrast).sum()
        if self.l2_weight > 0:
            terms["l2"] = self.l2_weight * losses.l2_loss(*self.ego_rows(batch))
        return terms

    def _views(self) -> list[Tensor]:
        """Return h_m of each modality, ``[n_items, d]``."""
        views = []
        for graph in self.item_graphs:
            learned, view = graph.learned_weights(), self.item_embedding.weight
            for _ in range(self.n_item_layers):
                view = graph(view, learned)
            views.append(view)
        return views

    def _fuse(self, views: list[Tensor]) -> Tensor:
        """Return h, ``[n_items, d]``."""
        if self.attention is None:
            return views[0]
        stacked = torch.stack(views)
        share: Tensor = self.attention(stacked).softmax(dim=0)
        return (share * stacked).sum(dim=0)
