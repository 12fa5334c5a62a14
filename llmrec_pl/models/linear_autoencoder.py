"""What linear autoencoders share: a dense item x item matrix, and its solves in place."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.data.features import FeatureStore
from llmrec_pl.errors import ConfigError
from llmrec_pl.graph import weighted_sum
from llmrec_pl.models.closed_form import ItemItem

_TILE = 1024


class LinearAutoencoder(ItemItem):
    """Keeps dense weights B between items, ``[n_items, n_items]``, with a zero diagonal.

    Memory is `n_matrices` times ``4 n_items^2`` bytes while solving, once that afterwards.
    """

    item_weights: Tensor
    n_matrices = 1

    def build(self, dataset: InteractionDataset, features: FeatureStore) -> None:
        """Keep the interactions and make room for B.

        Raises:
            ConfigError: the matrices do not fit into memory.
        """
        super().build(dataset, features)
        n = dataset.n_items
        needed, free = self.n_matrices * 4 * n**2, available_memory()
        if needed > free:
            raise ConfigError(
                f"{type(self).__name__} needs {needed / 1e9:.1f} GB for {self.n_matrices} dense "
                f"matrices of {n:,} x {n:,} items, and {free / 1e9:.1f} GB are free; use "
                "`item_knn`, whose memory grows with items and not with their square, or a larger "
                "k-core in `prepare`."
            )
        self.register_buffer("item_weights", torch.zeros(n, n))

    def weights_to(self, items: Tensor) -> Tensor:
        """Return columns of B as rows."""
        return self.item_weights.T[items]

    def scores(self, users: Tensor) -> Tensor:
        """Sum the rows of B over each user's history."""
        items, count = self.history_of(users)
        ones = torch.ones(len(items), device=items.device)
        return weighted_sum(items, ones, self.item_weights, count.cumsum(0) - count)


def available_memory() -> int:
    """Return the bytes of main memory that are free; all of it where the system does not say."""
    path = Path("/proc/meminfo")
    if path.is_file():
        lines = (line.split() for line in path.read_text("ascii").splitlines())
        return 1024 * next(int(line[1]) for line in lines if line[0] == "MemAvailable:")
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def write_gram(out: Tensor, matrix: sp.csr_array) -> None:
    """Write ``matrix^T matrix`` into a dense tensor, a tile of rows at a time.

    Args:
        out: ``[n, n]``, overwritten.
        matrix: ``[m, n]``.
    """
    transpose = sp.csr_array(matrix.T)
    for start in range(0, len(out), _TILE):
        rows = (transpose[start : start + _TILE] @ matrix).toarray()
        out[start : start + _TILE] = torch.from_numpy(np.ascontiguousarray(rows))


def invert_in_place(matrix: Tensor) -> None:
    """Replace a symmetric positive definite matrix ``[n, n]`` by its inverse.

    Raises:
        ConfigError: it is not positive definite in its precision.
    """
    info = torch.empty((), dtype=torch.int32, device=matrix.device)
    # LAPACK works by columns: a view by rows would be copied, and symmetric it reads the same.
    by_columns = matrix.mT
    torch.linalg.cholesky_ex(by_columns, out=(by_columns, info))
    if int(info):
        raise ConfigError(
            "the regularised Gram matrix is not positive definite; raise the L2 weights."
        )
    torch.cholesky_inverse(by_columns, out=by_columns)


def ridge_without_self(matrix: Tensor, l2_weight: float) -> None:
    """Replace a Gram matrix by the weights that predict each column from the others.

    Solves ``min ||Y - Y B||^2 + l2 ||B||^2`` with ``diag(B) = 0`` for the Gram matrix ``Y^T Y``:
    with ``P = (Y^T Y + l2 I)^-1``, ``B = I - P diag(1 / diag(P))``.

    Source: Eq. (8) of Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019.
    Deviations: none.

    Args:
        matrix: ``[n, n]``, overwritten.
        l2_weight: weight of the squared norm, positive.
    """
    matrix.diagonal().add_(l2_weight)
    invert_in_place(matrix)
    matrix /= -matrix.diagonal().clone()
    matrix.fill_diagonal_(0.0)
