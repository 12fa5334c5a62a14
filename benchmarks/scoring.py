"""One evaluator for both libraries and for the closed-form references."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
import torch

from llmrec_pl.evaluation.metrics import PROFILES, per_user_metrics
from llmrec_pl.evaluation.ranking import sparse_rows, top_k

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from llmrec_pl.data.dataset import InteractionDataset, Split

KS = (10, 20, 50)
USERS_AT_ONCE = 1024


def masked_items(dataset: InteractionDataset, split: Split) -> sp.csr_array:
    """Return what is removed from the ranking: train, and at test also validation."""
    return dataset.train if split == "val" else dataset.known_items()


def evaluate_vectors(
    user: NDArray[np.float32], item: NDArray[np.float32], dataset: InteractionDataset, split: Split
) -> dict[str, float]:
    """Rank all items by inner product and average the metrics over users.

    Args:
        user: ``[n_users, d]``.
        item: ``[n_items, d]``.
        dataset: with the test split open if `split` is "test".
        split: "val" or "test".

    Returns:
        ``recall@20`` and so on, ``users``, ``hits@20`` and so on.
    """
    users, items = torch.from_numpy(user), torch.from_numpy(item)

    def rank(
        ids: NDArray[np.int64], seen: tuple[NDArray[np.int64], NDArray[np.int64]]
    ) -> torch.Tensor:
        return top_k(users[ids], items, max(KS), seen)[0]

    return _evaluate(rank, dataset, split)


def evaluate_scores(
    scores: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    dataset: InteractionDataset,
    split: Split,
) -> dict[str, float]:
    """Do the same for a function from user ids ``[n]`` to scores ``[n, n_items]``."""

    def rank(
        ids: NDArray[np.int64], seen: tuple[NDArray[np.int64], NDArray[np.int64]]
    ) -> torch.Tensor:
        block = torch.from_numpy(scores(ids))
        block[torch.from_numpy(seen[0]), torch.from_numpy(seen[1])] = -torch.inf
        return block.sort(dim=1, descending=True, stable=True).indices[:, : max(KS)]

    return _evaluate(rank, dataset, split)


def _evaluate(
    rank: Callable[..., torch.Tensor], dataset: InteractionDataset, split: Split
) -> dict[str, float]:
    relevant, seen = dataset.splits[split], masked_items(dataset, split)
    users = np.flatnonzero(np.diff(relevant.indptr))
    sums: dict[str, float] = {}
    for start in range(0, len(users), USERS_AT_ONCE):
        batch = users[start : start + USERS_AT_ONCE]
        ids = rank(batch, sparse_rows(seen, batch))
        row, column = sparse_rows(relevant, batch)
        wanted = torch.zeros(len(batch), dataset.n_items, dtype=torch.bool)
        wanted[torch.from_numpy(row), torch.from_numpy(column)] = True
        hits = wanted.gather(1, ids.clamp(min=0)) & (ids >= 0)
        values = per_user_metrics(hits, wanted.sum(dim=1), KS, PROFILES["standard"])
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + float(value.sum())
        for k in KS:
            sums[f"hits@{k}"] = sums.get(f"hits@{k}", 0) + int(hits[:, :k].sum())
    means = {name: value / len(users) for name, value in sums.items() if "hits" not in name}
    return means | {"users": len(users)} | {f"hits@{k}": sums[f"hits@{k}"] for k in KS}
