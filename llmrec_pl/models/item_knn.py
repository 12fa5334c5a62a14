"""Item-based nearest neighbours."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.data.features import FeatureStore
from llmrec_pl.errors import ConfigError
from llmrec_pl.graph import weighted_sum
from llmrec_pl.models.closed_form import ItemItem

Array = np.ndarray[Any, Any]
Weighting = Literal["none", "tf-idf", "bm25"]
_TILE = 1024


class ItemKNN(ItemItem):
    """Score an item by its similarities to those of its nearest neighbours that a user knows.

    ``s_ij = w_i . w_j / (|w_i| |w_j| + shrinkage)`` with the weighted train columns w; an item
    keeps its `n_neighbours` most similar others, ties to the lower id, and the score is the sum
    of the kept ``s_ij`` over the user's train items j.

    Source: Sarwar et al., "Item-based collaborative filtering recommendation algorithms", WWW
    2001; shrinkage as in Bell and Koren, ICDM 2007; BM25 as in Robertson and Zaragoza, 2009.
    Deviations: no division by the sum of similarities, which belongs to ratings. The neighbours
    are those of the item that is scored; Deshpande and Karypis (TOIS 2004) and `implicit` keep
    those of the user's items, which finds fewer held-out items.

    Args:
        n_neighbours: neighbours an item keeps.
        shrinkage: added to the product of norms, draws pairs with few common users to 0; a very
            large one ranks by the plain product.
        weighting: "none" for zeros and ones; "tf-idf" weighs a user by
            ``log(n_items) - log(1 + degree)``; "bm25" also dampens long columns.
        bm25_k1: saturation of BM25.
        bm25_b: how much the length of a column counts in BM25, in [0, 1].

    Raises:
        ConfigError: a value is out of range.
    """

    neighbours: Tensor
    similarity: Tensor

    def __init__(
        self,
        n_neighbours: int = 200,
        shrinkage: float = 50.0,
        weighting: Weighting = "bm25",
        bm25_k1: float = 1.2,
        bm25_b: float = 0.75,
    ) -> None:
        super().__init__()
        if n_neighbours < 1 or shrinkage < 0 or bm25_k1 < 0 or not 0 <= bm25_b <= 1:
            raise ConfigError(
                "`n_neighbours` must be positive, `shrinkage` and `bm25_k1` not negative and "
                f"`bm25_b` in [0, 1], got {n_neighbours}, {shrinkage}, {bm25_k1} and {bm25_b}."
            )
        if weighting not in get_args(Weighting):
            raise ConfigError(
                f"`weighting` must be one of {get_args(Weighting)}, got {weighting!r}."
            )
        self.n_neighbours, self.shrinkage, self.weighting = n_neighbours, shrinkage, weighting
        self.bm25_k1, self.bm25_b = bm25_k1, bm25_b

    def build(self, dataset: InteractionDataset, features: FeatureStore) -> None:
        """Keep the interactions and make room for the neighbours."""
        super().build(dataset, features)
        shape = dataset.n_items, min(self.n_neighbours, dataset.n_items)
        self.register_buffer("neighbours", torch.zeros(shape, dtype=torch.int64))
        self.register_buffer("similarity", torch.zeros(shape))

    def solve(self) -> None:
        """Find each item's neighbours, a tile of items at a time."""
        weighted = self._weighted()
        transpose = sp.csr_array(weighted.T)
        norm = np.sqrt(weighted.power(2).sum(axis=0))
        self.neighbours.zero_()
        self.similarity.zero_()
        for start in range(0, len(norm), _TILE):
            product = sp.coo_array(transpose[start : start + _TILE] @ weighted)
            row, column = product.coords
            other = (row + start != column) & (product.data != 0)
            row, column, value = row[other], column[other], product.data[other]
            value = value / (norm[row + start] * norm[column] + self.shrinkage)
            row, column, value, place = _strongest(row, column, value, self.n_neighbours)
            at = torch.from_numpy(row + start), torch.from_numpy(place)
            self.neighbours[at] = torch.from_numpy(column.astype(np.int64)).to(self.neighbours)
            self.similarity[at] = torch.from_numpy(value).to(self.similarity)

    def _weighted(self) -> sp.csr_array:
        """Return the train matrix with its weights, float64 ``[n_users, n_items]``."""
        matrix = self.interactions
        if self.weighting == "none":
            return matrix
        degree = np.diff(matrix.indptr)
        user = np.log(matrix.shape[1]) - np.log1p(degree)
        data = np.repeat(user, degree)
        if self.weighting == "bm25":
            length = matrix.sum(axis=0)
            relative = 1 - self.bm25_b + self.bm25_b * length / length.mean()
            data *= (self.bm25_k1 + 1) / (self.bm25_k1 * relative[matrix.indices] + 1)
        return sp.csr_array((data, matrix.indices, matrix.indptr), shape=matrix.shape)

    def weights_to(self, items: Tensor) -> Tensor:
        """Spread the neighbours' similarities over all items."""
        shape = len(items), self.interactions.shape[1]
        weights = torch.zeros(shape, dtype=self.similarity.dtype, device=items.device)
        return weights.scatter_add_(1, self.neighbours[items], self.similarity[items])

    def scores(self, users: Tensor) -> Tensor:
        """Sum the similarities of each item's neighbours that are in a user's history."""
        known = self.history_rows(users).T.contiguous()
        return weighted_sum(self.neighbours, self.similarity, known.to(self.similarity)).T


def _strongest(row: Array, column: Array, value: Array, k: int) -> tuple[Array, ...]:
    """Keep the k largest entries of each row, ties to the lower column, with their places."""
    order = np.lexsort((column, -value, row))
    row, column, value = row[order], column[order], value[order]
    count = np.bincount(row)
    place = np.arange(len(row)) - (np.cumsum(count) - count)[row]
    kept = place < k
    return row[kept], column[kept], value[kept], place[kept]
