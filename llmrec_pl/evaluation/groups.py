"""Popularity: groups of items for the same metrics on each, and how unequal counts are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ITEM_GROUPS = ("cold", "tail", "mid", "head")
"""Codes 0..3 of `item_groups`."""


def gini(counts: NDArray[np.int64]) -> float:
    """Return the Gini coefficient: 0 if all are equal, near 1 if one has everything.

    Args:
        counts: non-negative numbers, ``[n]``.
    """
    total = counts.sum()
    if not total:
        return 0.0
    n, ordered = len(counts), np.sort(counts).astype(np.float64)
    return float(((2 * np.arange(1, n + 1) - n - 1) * ordered).sum() / (n * total))


def item_groups(popularity: NDArray[np.int64]) -> NDArray[np.int8]:
    """Assign each item to cold, tail, mid or head.

    Cold items have no train interaction. The others are ordered by their number of train
    interactions (ties by id); head, mid and tail hold a third of all train interactions each.

    Args:
        popularity: train interactions of each item, ``[n_items]``.

    Returns:
        Codes into `ITEM_GROUPS`, ``[n_items]``.
    """
    order = np.argsort(-popularity, kind="stable")
    before = np.cumsum(popularity[order]) - popularity[order]
    third = np.minimum(3 * before // max(int(popularity.sum()), 1), 2)
    codes = np.empty(len(popularity), dtype=np.int8)
    codes[order] = 3 - third
    codes[popularity == 0] = 0
    return codes
