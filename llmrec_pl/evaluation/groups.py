"""Groups of items and users by popularity, for the same metrics on each."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ITEM_GROUPS = ("cold", "tail", "mid", "head")
"""Codes 0..3 of `item_groups`."""


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
