"""L3AE: EASE, drawn towards what the items' features say."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.data.features import Feature, FeatureStore
from llmrec_pl.errors import ConfigError
from llmrec_pl.models.layers import FeatureTable, item_modalities
from llmrec_pl.models.linear_autoencoder import (
    LinearAutoencoder,
    invert_in_place,
    ridge_without_self,
    write_gram,
)

_TILE = 1024


class L3AE(LinearAutoencoder):
    """Learn item weights from interactions, and pull them towards those learned from features.

    Phase 1 predicts an item's feature row from those of other items, phase 2 a user's item from
    the user's other items, near the result of phase 1::

        S = argmin ||F - F S||^2 + feature_l2_weight ||S||^2            with diag(S) = 0
        B = argmin ||X - X B||^2 + l2_weight ||B||^2
                                 + semantic_weight ||B - S||^2          with diag(B) = 0

    where F ``[sum of dims, n_items]`` stacks the features of items. Both are solved exactly.
    With ``P = (X^T X + (l2_weight + semantic_weight) I)^-1``,
    ``B = I + P (semantic_weight S - diag(m))`` and
    ``m_j = (1 + semantic_weight (P S)_jj) / P_jj``.

    Source: Moon, Park and Lee, "LLM-Enhanced Linear Autoencoders for Recommendation", CIKM 2025.
    Deviations: any number of features instead of one text embedding; rows have unit length, and
    all features together the weight of one.

    Args:
        modalities: names of item features; None for all item modalities.
        l2_weight: weight of the squared norm of B.
        feature_l2_weight: weight of the squared norm of S.
        semantic_weight: how strongly B is drawn towards S; 0 is EASE, and S is not made.

    Raises:
        ConfigError: a weight is out of range.
    """

    n_matrices = 2

    def __init__(
        self,
        modalities: list[str] | None = None,
        l2_weight: float = 200.0,
        feature_l2_weight: float = 10.0,
        semantic_weight: float = 200.0,
    ) -> None:
        super().__init__(l2_weight=l2_weight)
        if l2_weight < 0 or semantic_weight < 0 or l2_weight + semantic_weight == 0:
            raise ConfigError(
                "`l2_weight` and `semantic_weight` must not be negative, nor both 0, got "
                f"{l2_weight} and {semantic_weight}."
            )
        if feature_l2_weight <= 0:
            raise ConfigError(f"`feature_l2_weight` must be positive, got {feature_l2_weight}.")
        self.modalities, self.semantic_weight = modalities, semantic_weight
        self.feature_l2_weight = feature_l2_weight

    def build(self, dataset: InteractionDataset, features: FeatureStore) -> None:
        """Keep the interactions, and the features where they count."""
        super().build(dataset, features)
        if self.semantic_weight > 0:
            self.tables = nn.ModuleList(FeatureTable(f) for f in self._chosen(features))

    def _chosen(self, features: FeatureStore) -> list[Feature]:
        if self.modalities is None:
            return item_modalities(features, "L3AE")
        chosen = [features[name] for name in self.modalities]
        wrong = [f.name for f in chosen if f.side != "item"]
        if wrong or not chosen:
            raise ConfigError(
                "`modalities` must name one or more features of items, or be null for all item "
                f"modalities, got {self.modalities!r}"
                + (f"; {wrong} are of users." if wrong else ".")
            )
        return chosen

    def solve(self) -> None:
        """Solve phase 1, then phase 2 with its result."""
        weights, total = self.item_weights, self.l2_weight + self.semantic_weight
        if self.semantic_weight == 0:
            write_gram(weights, self.interactions)
            ridge_without_self(weights, total)
            return
        target = torch.empty_like(weights)
        self._write_feature_gram(target)
        ridge_without_self(target, self.feature_l2_weight)
        write_gram(weights, self.interactions)
        weights.diagonal().add_(total)
        invert_in_place(weights)
        _draw_towards(weights, target.mul_(self.semantic_weight))

    def _write_feature_gram(self, out: Tensor) -> None:
        out.zero_()
        for table in self.tables:
            rows = F.normalize(table.dense().to(out.dtype), dim=1)  # type: ignore[operator]
            out.addmm_(rows, rows.T, alpha=1 / len(self.tables))


def _draw_towards(inverse: Tensor, target: Tensor) -> None:
    """Replace P by ``I + P (T - diag(m))``, whose diagonal m makes zero.

    Args:
        inverse: P, symmetric ``[n, n]``, overwritten by the result.
        target: T ``[n, n]``, overwritten.
    """
    n = len(inverse)
    # Row products, not the whole P T: its diagonal is all that m needs.
    tiles = [slice(start, start + _TILE) for start in range(0, n, _TILE)]
    diagonal = torch.cat([(inverse[:, t] * target[:, t]).sum(dim=0) for t in tiles])
    target.diagonal().sub_((1 + diagonal) / inverse.diagonal())
    for tile in tiles:
        target[:, tile] = inverse @ target[:, tile]
    inverse.copy_(target.fill_diagonal_(0.0))
