"""What can be computed of a frozen feature before training: its products with the graph.

Features may be memory-mapped and larger than what is kept of them, so they are read in blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from llmrec_pl.data.features import Feature, release
from llmrec_pl.errors import ConfigError
from llmrec_pl.models.frozen import FrozenRows, NonZeroRows, Source, Storage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

_BLOCK_ROWS, _BLOCK_COLUMNS = 4096, 256
_MOST_FLOAT16 = float(np.finfo(np.float16).max)


def stored_rows(
    feature: Feature, storage: Storage = "float32", columns: slice = slice(None)
) -> NDArray[Any]:
    """Return a copy of the distinct rows, or of some columns of them."""
    width = len(range(*columns.indices(feature.dim)))
    rows = np.empty((len(feature.values), width), dtype=storage)
    for start, block in _blocks(feature):
        rows[start : start + len(block)] = _checked(block[:, columns], storage, feature)
    return rows


def _checked(values: NDArray[Any], storage: Storage, feature: Feature) -> NDArray[Any]:
    if storage == "float16" and values.size and np.abs(values).max() > _MOST_FLOAT16:
        raise ConfigError(
            f"feature {feature.name!r} holds numbers beyond {_MOST_FLOAT16:,.0f}, the largest of "
            "float16: set `model.init_args.feature_storage: float32`, or scale the feature."
        )
    return values


def mean_row(feature: Feature) -> tuple[Tensor, float]:
    """Return the mean row over all nodes, unknown ones being zero, and the share of known ones."""
    n = max(feature.n_rows, 1)
    index = np.arange(n) if feature.index is None else feature.index[feature.index >= 0]
    count = np.bincount(index, minlength=len(feature.values))
    total = np.zeros(feature.dim)
    for start, block in _blocks(feature):
        total += count[start : start + len(block)] @ block.astype(np.float32)
    return torch.from_numpy((total / n).astype(np.float32)), 1.0 - feature.n_missing / n


def selection(index: NDArray[np.int64], n_distinct: int) -> sp.csr_array:
    """Return the matrix that gives each node its distinct row, ``[n_rows, n_distinct]``."""
    known = np.flatnonzero(index >= 0)
    ones = np.ones(len(known), dtype=np.float32)
    return sp.csr_array((ones, (known, index[known])), shape=(len(index), n_distinct))


def entries_a_read(matrix: sp.csr_array) -> float:
    """Return how many entries a row has, on average over the entries: rows are read by edges."""
    count = np.diff(matrix.indptr).astype(np.float64)
    return float((count**2).sum() / max(count.sum(), 1.0))


def filled_rows(matrix: sp.csr_array) -> NDArray[np.bool_]:
    """Return which rows have an entry, ``[n_rows]``."""
    filled: NDArray[np.bool_] = np.diff(matrix.indptr) > 0
    return filled


def propagated_rows(
    feature: Feature, operators: Sequence[sp.csr_array], storage: Storage
) -> Source:
    """Carry the distinct rows F over the graph, and keep those that are not zero.

    Args:
        feature: F.
        operators: A for ``A F``; A and B for ``B A F``.
        storage: the type in which they are kept.
    """
    filled = filled_rows(operators[-1])
    share = _product(operators, np.ones(len(feature.values), dtype=np.float32))[filled]
    divisor = np.where(share > 0, share, 1)[:, None]
    rows = np.empty((int(filled.sum()), feature.dim), dtype=storage)
    for start in range(0, feature.dim, _BLOCK_COLUMNS):
        columns = slice(start, start + _BLOCK_COLUMNS)
        sums = _product(operators, stored_rows(feature, columns=columns))[filled]
        rows[:, columns] = _checked(sums / divisor, storage, feature)
    stored = FrozenRows(rows, share)
    return stored if filled.all() else NonZeroRows(stored, filled)


def _product(operators: Sequence[sp.csr_array], x: NDArray[np.float32]) -> NDArray[np.float32]:
    for operator in operators:
        x = operator @ x
    return x


def gram_of(source: Source) -> Tensor:
    """Return ``X' X`` of stored rows, the bias's share as last column, ``[dim + 1, dim + 1]``.

    Blocks are multiplied in float32 and summed in float64.
    """
    stored = source.rows if isinstance(source, NonZeroRows) else source
    assert isinstance(stored, FrozenRows)
    assert stored.scale is not None
    rows, scale = stored.values.numpy(), stored.scale.numpy()[:, None]
    total = np.zeros((rows.shape[1] + 1,) * 2)
    for start in range(0, len(rows), _BLOCK_ROWS):
        part = slice(start, start + _BLOCK_ROWS)
        block = np.column_stack([rows[part].astype(np.float32) * scale[part], scale[part]])
        total += block.T @ block
    return torch.from_numpy(total.astype(np.float32))


def _blocks(feature: Feature) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield the distinct rows in blocks, and let go of the memory-mapped pages after each."""
    for start in range(0, len(feature.values), _BLOCK_ROWS):
        yield start, feature.values[start : start + _BLOCK_ROWS]
        release(feature.values)
