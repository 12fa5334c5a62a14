"""References without training: popularity, and cosine k nearest items."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from benchmarks.scoring import evaluate_scores

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from llmrec_pl.data.dataset import InteractionDataset

NEIGHBOURS: tuple[int | None, ...] = (20, 50, 100, 200, None)


def popularity(train: sp.csr_array) -> Callable[[NDArray[np.int64]], NDArray[np.float32]]:
    """Score every item by its number of train interactions, for all users alike."""
    count = np.bincount(train.indices, minlength=train.shape[1]).astype(np.float32)
    return lambda users: np.tile(count, (len(users), 1))


def item_knn(
    train: sp.csr_array, k: int | None
) -> Callable[[NDArray[np.int64]], NDArray[np.float32]]:
    """Score an item by the sum of its cosine similarities to the user's train items.

    Source: Deshpande and Karypis, "Item-based top-N recommendation algorithms", TOIS 2004.
    Deviations: similarities are not normalised once more per item.

    Args:
        train: boolean CSR ``[n_users, n_items]``.
        k: neighbours that each train item lends its vote to; None for all.
    """
    matrix = sp.csr_array(train, dtype=np.float32)
    norm = np.maximum(np.sqrt(matrix.sum(axis=0)), 1e-12)
    columns = sp.csr_array(matrix @ sp.diags_array(1 / norm)).astype(np.float32)
    similarity = sp.csr_array(columns.T @ columns)
    similarity.setdiag(0)
    similarity.eliminate_zeros()
    if k is not None:
        similarity = _strongest(similarity, k)
    return lambda users: (matrix[users] @ similarity).toarray()


def _strongest(similarity: sp.csr_array, k: int) -> sp.csr_array:
    """Keep the k largest entries of each row, ties to the lower column."""
    row = np.repeat(np.arange(similarity.shape[0]), np.diff(similarity.indptr))
    order = np.lexsort((similarity.indices, -similarity.data, row))
    place = np.arange(len(order)) - similarity.indptr[row]
    kept = order[place < k]
    entries = (similarity.data[kept], (row[kept], similarity.indices[kept]))
    return sp.csr_array(entries, shape=similarity.shape)


def evaluate_closed_form(
    dataset: InteractionDataset, opened: InteractionDataset | None
) -> list[dict[str, Any]]:
    """Evaluate both references, k chosen on validation Recall@20.

    Args:
        dataset: with the test split sealed.
        opened: the same with the test split open, or None to leave it sealed.

    Returns:
        One record a reference.
    """
    scorers = {str(k or "all"): item_knn(dataset.train, k) for k in NEIGHBOURS}
    validation = {name: evaluate_scores(s, dataset, "val") for name, s in scorers.items()}
    best = max(validation, key=lambda name: validation[name]["recall@20"])
    popular = popularity(dataset.train)
    tried = {name: metrics["recall@20"] for name, metrics in validation.items()}
    records: list[dict[str, Any]] = [
        {"model": "popularity", "settings": {}, "trials": {}},
        {"model": "item-kNN", "settings": {"k": best}, "trials": tried},
    ]
    records[0]["validation"] = evaluate_scores(popular, dataset, "val")
    records[1]["validation"] = validation[best]
    for record, scorer in zip(records, (popular, scorers[best]), strict=True):
        record["library"] = "closed form"
        record["test"] = None if opened is None else evaluate_scores(scorer, opened, "test")
    return records
