"""Ranking metrics: per-user formulas as functions, and classes that only sum them.

Conventions of the `standard` profile: averages run over users with at least one held-out item;
lists are cut at K; gain is binary.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from llmrec_pl.evaluation.groups import gini

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

IdealDCG = Literal["relevant", "retrieved"]
MapDivisor = Literal["relevant", "clipped"]
METRICS = ("recall", "ndcg", "precision", "hit", "mrr", "map")


@dataclasses.dataclass(frozen=True)
class Profile:
    """Another library's conventions, so that numbers can be compared.

    Attributes:
        ideal_dcg: "relevant" for the best list of min(|relevant|, K) hits, "retrieved" for the
            best order of the hits found in the top Kmax (the released LLMRec code).
        map_divisor: "relevant" for |relevant| (trec_eval), "clipped" for min(|relevant|, K).
        mask_val_at_test: remove validation items from the ranking when testing.
    """

    ideal_dcg: IdealDCG = "relevant"
    map_divisor: MapDivisor = "relevant"
    mask_val_at_test: bool = True


PROFILES = {
    "standard": Profile(),
    "llmrec": Profile(ideal_dcg="retrieved", mask_val_at_test=False),
    "recbole": Profile(map_divisor="clipped"),
}
ProfileName = Literal["standard", "llmrec", "recbole"]


def recall(hits: Tensor, n_relevant: Tensor, k: int) -> Tensor:
    """Return hits in the top K / |relevant| for each user.

    Source: PROTOCOL of this project; Järvelin and Kekäläinen, TOIS 2002, for the set measures.
    Deviations: none (some libraries divide by min(|relevant|, K)).

    Args:
        hits: ``[n, k_max]`` bool, whether the item at each rank is relevant.
        n_relevant: ``[n]``, held-out items of each user, at least 1.
        k: cut-off, at most k_max.

    Returns:
        ``[n]`` float64 in [0, 1].
    """
    return hits[:, :k].sum(dim=1).double() / n_relevant


def precision(hits: Tensor, n_relevant: Tensor, k: int) -> Tensor:
    """Return hits in the top K / K for each user; see `recall` for the arguments.

    Source: trec_eval `P_k`.
    Deviations: none; K stays the divisor where fewer items can be ranked.
    """
    return hits[:, :k].sum(dim=1).double() / k


def hit(hits: Tensor, n_relevant: Tensor, k: int) -> Tensor:
    """Return 1 for each user with a hit in the top K; see `recall` for the arguments.

    Source: trec_eval `success_k`.
    Deviations: none.
    """
    return hits[:, :k].any(dim=1).double()


def mrr(hits: Tensor, n_relevant: Tensor, k: int) -> Tensor:
    """Return 1 / rank of the first hit in the top K, else 0; see `recall` for the arguments.

    Source: trec_eval `recip_rank`, cut at K.
    Deviations: none.
    """
    cut = hits[:, :k]
    first = cut.int().argmax(dim=1)
    return cut.any(dim=1).double() / (first + 1)


def average_precision(
    hits: Tensor, n_relevant: Tensor, k: int, divisor: MapDivisor = "relevant"
) -> Tensor:
    """Return the sum of precision at each hit in the top K, over |relevant|.

    Source: trec_eval `map_cut_k`.
    Deviations: none; ``divisor="clipped"`` divides by min(|relevant|, K).

    Args:
        hits: see `recall`.
        n_relevant: see `recall`.
        k: see `recall`.
        divisor: which divisor.
    """
    cut = hits[:, :k]
    # Counted in integers: a float cumsum has no deterministic CUDA kernel.
    precision_at = cut.cumsum(dim=1) / _ranks(cut)
    n = n_relevant if divisor == "relevant" else n_relevant.clamp(max=k)
    return (cut * precision_at).sum(dim=1) / n


def ndcg(hits: Tensor, n_relevant: Tensor, k: int, ideal: IdealDCG = "relevant") -> Tensor:
    """Return DCG with binary gain and log2 discount over its ideal value.

    Source: Järvelin and Kekäläinen, TOIS 2002, with discount 1 / log2(rank + 1).
    Deviations: none; the ideal list has min(|relevant|, K) hits. ``ideal="retrieved"`` takes
    min(hits in the whole list, K) instead, as the released LLMRec code.

    Args:
        hits: see `recall`.
        n_relevant: see `recall`.
        k: see `recall`.
        ideal: which ideal list.
    """
    discount = 1.0 / torch.log2(_ranks(hits[:, :k]) + 1.0)
    dcg = (hits[:, :k] * discount).sum(dim=1)
    n_ideal = n_relevant if ideal == "relevant" else hits.sum(dim=1)
    in_ideal = _ranks(hits[:, :k]) <= n_ideal.unsqueeze(1)
    best = (in_ideal * discount).sum(dim=1)
    return torch.where(best > 0, dcg / best, 0.0)


def _ranks(cut: Tensor) -> Tensor:
    return torch.arange(1, cut.shape[1] + 1, dtype=torch.float64, device=cut.device)


def per_user_metrics(
    hits: Tensor, n_relevant: Tensor, ks: Sequence[int], profile: Profile
) -> dict[str, Tensor]:
    """Return every metric at every K for each user, by names such as ``recall@20``.

    Args:
        hits: ``[n, max(ks)]`` bool.
        n_relevant: ``[n]`` integers, at least 1.
        ks: cut-offs.
        profile: conventions.

    Returns:
        Name to ``[n]`` float64.
    """
    values = {}
    for k in ks:
        values[f"recall@{k}"] = recall(hits, n_relevant, k)
        values[f"ndcg@{k}"] = ndcg(hits, n_relevant, k, profile.ideal_dcg)
        values[f"precision@{k}"] = precision(hits, n_relevant, k)
        values[f"hit@{k}"] = hit(hits, n_relevant, k)
        values[f"mrr@{k}"] = mrr(hits, n_relevant, k)
        values[f"map@{k}"] = average_precision(hits, n_relevant, k, profile.map_divisor)
    return values


def metric_names(ks: Sequence[int]) -> list[str]:
    """Return the names that `per_user_metrics` gives, in its order."""
    return [f"{metric}@{k}" for k in ks for metric in METRICS]


class RankingMetrics(Metric):
    """Averages the per-user metrics over users; sums are added over processes.

    Source: `per_user_metrics`.
    Deviations: none; users without held-out items are not counted.

    Args:
        ks: cut-offs, ascending.
        profile: conventions.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    sums: Tensor
    n_users: Tensor
    n_hits: Tensor

    def __init__(self, ks: Sequence[int], profile: Profile, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(**kwargs)
        self.ks, self.profile, self.names = tuple(ks), profile, metric_names(ks)
        self.add_state("sums", torch.zeros(len(self.names), dtype=torch.float64), "sum")
        self.add_state("n_users", torch.zeros((), dtype=torch.int64), "sum")
        self.add_state("n_hits", torch.zeros(len(self.ks), dtype=torch.int64), "sum")

    def update(
        self, hits: Tensor, n_relevant: Tensor, values: Mapping[str, Tensor] | None = None
    ) -> None:
        """Add users; those with `n_relevant` 0 are left out.

        Args:
            hits: see `per_user_metrics`.
            n_relevant: see `per_user_metrics`.
            values: what `per_user_metrics` gives for these users, where it is known already;
                then `n_relevant` must be positive.
        """
        if values is None:
            counted = n_relevant > 0
            hits, n_relevant = hits[counted], n_relevant[counted]
            values = per_user_metrics(hits, n_relevant, self.ks, self.profile)
        self.sums += torch.stack([values[name].sum() for name in self.names])
        self.n_users += len(hits)
        self.n_hits += torch.stack([hits[:, :k].sum() for k in self.ks])

    def compute(self) -> dict[str, float]:
        """Return each mean, ``users``, and ``hits@K``; means are NaN without users.

        Python numbers, not tensors: float64 means would lose digits in a float32 log.
        """
        n_users = int(self.n_users)
        means = (self.sums / n_users).tolist() if n_users else [float("nan")] * len(self.names)
        hits = {f"hits@{k}": int(n) for k, n in zip(self.ks, self.n_hits.tolist(), strict=True)}
        return dict(zip(self.names, means, strict=True)) | {"users": n_users} | hits


class ExposureMetrics(Metric):
    """Coverage, mean popularity and Gini of the recommendations.

    Source: coverage and Gini as in Herlocker et al., TOIS 2004, and Fleder and Hosanagar, 2009.
    Deviations: Gini is over all items of the catalogue, also those never recommended.

    ``coverage@K`` is the share of the catalogue in at least one list; ``popularity@K`` the mean
    number of train interactions of a recommended item; ``gini@K`` is 0 if all items are
    recommended equally often and near 1 if a few take all.

    Args:
        ks: cut-offs, ascending.
        popularity: train interactions of each item, ``[n_items]``.
    """

    full_state_update = False
    is_differentiable = False
    exposure: Tensor

    def __init__(self, ks: Sequence[int], popularity: Tensor, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(**kwargs)
        self.ks = tuple(ks)
        self.popularity = popularity.double().cpu()
        state = torch.zeros(len(self.ks), len(popularity), dtype=torch.int64)
        self.add_state("exposure", state, "sum")

    def update(self, items: Tensor) -> None:
        """Add lists of item ids ``[n, k_max]``, negative past their end."""
        for row, k in enumerate(self.ks):
            shown = items[:, :k]
            shown = shown[shown >= 0]
            self.exposure[row] += torch.bincount(shown, minlength=self.exposure.shape[1])

    def compute(self) -> dict[str, float]:
        """Return the three measures at each K."""
        result = {}
        for k, row in zip(self.ks, self.exposure.cpu().double(), strict=True):
            total = row.sum().clamp(min=1.0)
            result[f"coverage@{k}"] = float((row > 0).double().mean())
            result[f"popularity@{k}"] = float((row * self.popularity).sum() / total)
            result[f"gini@{k}"] = gini(row.numpy())
        return result
