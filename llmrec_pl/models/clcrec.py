"""CLCRec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmrec_pl import losses
from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.data.features import FeatureStore
from llmrec_pl.errors import ConfigError
from llmrec_pl.models.base import OptimizerCallable, Recommender, Representations, SchedulerCallable
from llmrec_pl.models.layers import ByFeature, FeatureTable, item_modalities
from llmrec_pl.models.objective import negatives_of


class CLCRec(Recommender):
    """Score warm items by an embedding, and cold ones by their features through an MLP.

    A contrast makes the MLP's output f(x_i) tell which item's embedding q_i it belongs to. A
    sampled softmax over the items of a user sees q_i and f(x_i) mixed at random, so that either
    can stand for the item. Warm is an item with a train interaction, whatever its id.

    Source: Eq. (7) to (12) of Wei et al., "Contrastive Learning for Cold-Start Recommendation",
    MM 2021: ``lam * NCE(q_i, f(x_i)) + (1 - lam) * NCE(p_u, q_i or f(x_i))``.

    Deviations:
        cold negatives: a cold item is left out of both partition sums. Nobody has met it, so as a
            negative only it would learn to be disliked by all.
        negatives: items the user has not met in train; the released code also consults
            validation and test.
        temperatures: one for each term; the released code has one for both.
        replacement: each place of the batch by itself with `replace_rate`; the released code
            draws that share of the places with replacement, which replaces fewer.
        features: rows of each modality are scaled to unit length before they are concatenated, as
            in the released code.
        L2: half the squares, of the positive and one negative; the released code takes lengths,
            of all negatives.
        cold positives: a positive of the LLM without train interactions always is f(x_i).

    Parameters: ``user_embedding.weight``, ``item_embedding.weight``, ``encoder.0.weight``
    ``[hidden_dim, sum of dims]`` and ``.bias``, ``encoder.2.weight`` ``[d, hidden_dim]`` and
    ``.bias``.

    Args:
        embedding_dim: d.
        hidden_dim: width of the MLP's hidden layer.
        contrast_weight: lam, in [0, 1).
        contrast_temperature: divides the cosines of q_i and f(x_j).
        temperature: divides the inner products of p_u and the items.
        replace_rate: share of the items' embeddings replaced by f(x) in training, in [0, 1).
        l2_weight: weight of the L2 term on the batch's ego embeddings.
        optimizer: see `Recommender`.
        lr_scheduler: see `Recommender`.

    Raises:
        ConfigError: a value is out of range, or no item modality exists.
    """

    warm: Tensor
    tables: ByFeature
    encoder: nn.Sequential

    def __init__(
        self,
        embedding_dim: int = 64,
        hidden_dim: int = 256,
        contrast_weight: float = 0.5,
        contrast_temperature: float = 0.2,
        temperature: float = 1.0,
        replace_rate: float = 0.5,
        l2_weight: float = 1e-3,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: SchedulerCallable | None = None,
    ) -> None:
        super().__init__(embedding_dim, l2_weight, optimizer, lr_scheduler)
        if hidden_dim < 1:
            raise ConfigError(f"`hidden_dim` must be positive, got {hidden_dim}.")
        # At 1 the user embeddings, or the item embeddings, would not be trained.
        shares = {"contrast_weight": contrast_weight, "replace_rate": replace_rate}
        for name, value in shares.items():
            if not 0 <= value < 1:
                raise ConfigError(f"`{name}` must be in [0, 1), got {value}.")
        for name, value in (
            ("contrast_temperature", contrast_temperature),
            ("temperature", temperature),
        ):
            if value <= 0:
                raise ConfigError(f"`{name}` must be positive, got {value}.")
        self.hidden_dim, self.replace_rate = hidden_dim, replace_rate
        self.contrast_weight, self.contrast_temperature = contrast_weight, contrast_temperature
        self.temperature = temperature

    @property
    def uses_features(self) -> bool:
        """Whether any loss reaches the encoder; without one it is not built."""
        return self.contrast_weight + self.replace_rate > 0

    def build(self, dataset: InteractionDataset, features: FeatureStore) -> None:
        """Create embeddings, the feature tables and the MLP, and note which items are warm."""
        self.make_embeddings(dataset)
        met = np.bincount(dataset.train.indices, minlength=dataset.n_items) > 0
        self.register_buffer("warm", torch.from_numpy(met), persistent=False)
        if not self.uses_features:
            return
        modalities = item_modalities(features, "CLCRec")
        self.tables = ByFeature({f.name: FeatureTable(f, normalise=True) for f in modalities})
        self.encoder = nn.Sequential(
            nn.Linear(sum(f.dim for f in modalities), self.hidden_dim),
            nn.LeakyReLU(),
            nn.Linear(self.hidden_dim, self.embedding_dim),
        )

    def encode(self) -> Representations:
        """Return p_u of all users, and q_i or f(x_i) of all items."""
        every = torch.arange(len(self.warm), device=self.warm.device)
        return Representations(self.user_embedding.weight, self._item_rows(every))

    def encode_rows(self, users: Tensor, items: Tensor) -> Representations:
        """Return p_u, and q_i or f(x_i), of these users and items only."""
        return Representations(self.user_embedding(users), self._item_rows(items))

    def _item_rows(self, items: Tensor) -> Tensor:
        embedding: Tensor = self.item_embedding(items)
        if not self.uses_features:
            return embedding
        return torch.where(self.warm[items].unsqueeze(1), embedding, self._from_features(items))

    def _from_features(self, items: Tensor) -> Tensor:
        """Return f(x) of some items ``[n, d]``; a modality they lack counts as zeros."""
        tables = [cast("FeatureTable", t) for t in self.tables.values()]
        first, others = cast("nn.Linear", self.encoder[0]), self.encoder[1:]
        # The product of concatenated rows, without the rows: they are the bulk of the memory.
        weights = torch.split(first.weight, [t.dim for t in tables], dim=1)
        hidden: Tensor = first.bias
        for table, weight in zip(tables, weights, strict=True):
            hidden = hidden + table.multiply_rows(items, weight)
        encoded: Tensor = others(hidden)
        return encoded

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weighted terms ``contrast``, ``softmax`` and ``l2``."""
        items = torch.cat([batch["pos_item"].unsqueeze(1), negatives_of(batch)], dim=1)
        # Many negatives come often in a batch: each is encoded once.
        distinct, place = torch.unique(items, return_inverse=True)
        embedding = self.item_embedding(distinct)
        encoded = self._from_features(distinct) if self.uses_features else embedding
        user = self.user_embedding(batch["user"])
        terms = {}
        if self.contrast_weight > 0:
            anchor = F.normalize(embedding, dim=1)[place[:, 0]]
            score = losses.candidate_scores(anchor, F.normalize(encoded, dim=1), place)
            value = self._contrast(score, items, self.contrast_temperature)
            terms["contrast"] = self.contrast_weight * value
        mixed = place + len(distinct) * self._replaced(items)
        score = losses.candidate_scores(user, torch.cat([embedding, encoded]), mixed)
        value = self._contrast(score, items, self.temperature)
        terms["softmax"] = (1 - self.contrast_weight) * value
        if self.l2_weight > 0:
            terms["l2"] = self.l2_weight * losses.l2_loss(*self.ego_rows(batch))
        return terms

    def _replaced(self, items: Tensor) -> Tensor:
        """Choose the places of a batch where f(x) stands for the item, bool like `items`."""
        cold = ~self.warm[items]
        if not self.training:
            return cold
        return cold | (torch.rand(items.shape, device=items.device) < self.replace_rate)

    def _contrast(self, score: Tensor, items: Tensor, temperature: float) -> Tensor:
        """Tell the first candidate of each row from the warm ones among the others."""
        negative = score[:, 1:].masked_fill(~self.warm[items[:, 1:]], -torch.inf)
        return losses.sampled_softmax_loss(score[:, 0], negative, temperature)
