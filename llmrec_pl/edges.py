"""Edge lists of a bipartite graph as sparse matrices; knows no data set and no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:
    from numpy.typing import NDArray


def edges_to_csr(
    users: NDArray[Any], items: NDArray[Any], n_users: int, n_items: int
) -> sp.csr_array:
    """Build a boolean user x item matrix with sorted indices from edge lists.

    Args:
        users: dense user ids, ``[n_edges]``.
        items: dense item ids, ``[n_edges]``.
        n_users: number of rows.
        n_items: number of columns.

    Returns:
        A CSR matrix ``[n_users, n_items]``; repeated edges are counted once. Sorted edges, which a
        canonical folder has, take linear time.
    """
    if not is_sorted(users, items):
        order = np.lexsort((items, users))
        users, items = users[order], items[order]
        keep = np.ones(len(users), dtype=bool)
        keep[1:] = (users[1:] != users[:-1]) | (items[1:] != items[:-1])
        users, items = users[keep], items[keep]
    index_type = np.int32 if max(len(users), n_users, n_items) < 2**31 else np.int64
    indptr = np.zeros(n_users + 1, dtype=index_type)
    np.cumsum(np.bincount(users, minlength=n_users), out=indptr[1:])
    ones = np.ones(len(items), dtype=bool)
    return sp.csr_array((ones, items.astype(index_type), indptr), shape=(n_users, n_items))


def is_sorted(users: NDArray[Any], items: NDArray[Any]) -> bool:
    """Return whether each edge comes after the one before it, by user, then item."""
    later = users[1:] > users[:-1]
    later |= (users[1:] == users[:-1]) & (items[1:] > items[:-1])
    return bool(later.all())
