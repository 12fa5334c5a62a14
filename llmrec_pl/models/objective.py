"""The choice between BPR, sampled softmax and CCL, for models whose only loss it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from llmrec_pl import losses
from llmrec_pl.errors import ConfigError
from llmrec_pl.models.base import OptimizerCallable, Recommender, Representations, SchedulerCallable

Loss = Literal["bpr", "sampled_softmax", "ccl"]
Similarity = Literal["inner", "cosine"]


def negatives_of(batch: Mapping[str, Tensor]) -> Tensor:
    """Return the negatives of each triplet of a batch, ``[n, data.n_negatives]``."""
    return batch["neg_items"] if "neg_items" in batch else batch["neg_item"].unsqueeze(1)


class ObjectiveRecommender(Recommender, ABC):
    """A recommender that is trained by one term on a chosen similarity, and L2.

    Source: `bpr_loss`, `sampled_softmax_loss` and `cosine_contrastive_loss` of
    `llmrec_pl.losses`.
    Deviations: `similarity="cosine"` scales vectors to length 1 in `encode` too, so that ranking
    uses what was trained.

    Args:
        embedding_dim: width of the embeddings.
        l2_weight: weight of the L2 term on the batch's ego embeddings.
        loss: "bpr" contrasts `neg_item`; "sampled_softmax" and "ccl" all `data.n_negatives`.
        similarity: "inner" product or "cosine"; "ccl" needs the latter.
        temperature: divides the scores of "sampled_softmax".
        margin: cosine above which a negative counts in "ccl", in [-1, 1).
        negative_weight: weight of the mean over the negatives in "ccl".
        optimizer: see `Recommender`.
        lr_scheduler: see `Recommender`.

    Raises:
        ConfigError: a name is unknown, a value out of range, or "ccl" lacks the cosine.
    """

    def __init__(
        self,
        embedding_dim: int = 64,
        l2_weight: float = 1e-4,
        loss: Loss = "bpr",
        similarity: Similarity = "inner",
        temperature: float = 0.1,
        margin: float = 0.8,
        negative_weight: float = 100.0,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: SchedulerCallable | None = None,
    ) -> None:
        super().__init__(embedding_dim, l2_weight, optimizer, lr_scheduler)
        for name, value, known in (
            ("loss", loss, get_args(Loss)),
            ("similarity", similarity, get_args(Similarity)),
        ):
            if value not in known:
                raise ConfigError(f"`{name}` must be one of {known}, got {value!r}.")
        if temperature <= 0:
            raise ConfigError(f"`temperature` must be positive, got {temperature}.")
        if not -1 <= margin < 1:
            raise ConfigError(f"`margin` is a cosine in [-1, 1), got {margin}.")
        if negative_weight < 0:
            raise ConfigError(f"`negative_weight` must not be negative, got {negative_weight}.")
        if loss == "ccl" and similarity != "cosine":
            raise ConfigError(
                "`loss: ccl` needs `similarity: cosine`, got 'inner': 1 - y has no lower bound "
                "where y has no upper one."
            )
        self.loss, self.similarity, self.temperature = loss, similarity, temperature
        self.margin, self.negative_weight = margin, negative_weight

    @abstractmethod
    def represent(self) -> Representations:
        """Return all users ``[n_users, d]`` and items ``[n_items, d]`` of any length."""

    def encode(self) -> Representations:
        """Return `represent`, with rows of length 1 where the similarity is the cosine."""
        return self.scaled(self.represent())

    def scaled(self, rows: Representations) -> Representations:
        """Return rows whose inner product is the similarity."""
        if self.similarity == "inner":
            return rows
        return Representations(F.normalize(rows.user, dim=1), F.normalize(rows.item, dim=1))

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the chosen term, and ``l2``."""
        if self.loss == "bpr":
            return super().losses(batch)
        items = torch.cat([batch["pos_item"].unsqueeze(1), negatives_of(batch)], dim=1)
        # Many negatives come often in a batch: each is encoded once.
        distinct, place = torch.unique(items, return_inverse=True)
        rows = self.encode_rows(batch["user"], distinct)
        score = losses.candidate_scores(rows.user, rows.item, place)
        positive, negative = score[:, 0], score[:, 1:]
        if self.loss == "ccl":
            value = losses.cosine_contrastive_loss(
                positive, negative, self.margin, self.negative_weight
            )
        else:
            value = losses.sampled_softmax_loss(positive, negative, self.temperature)
        terms: dict[str, Tensor] = {self.loss: value}
        if self.l2_weight > 0:
            terms["l2"] = self.l2_weight * losses.l2_loss(*self.ego_rows(batch))
        return terms
