"""Graphs of nearest neighbours: who they are, found in tiles, and how much each of them counts."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor

from llmrec_pl.errors import ConfigError
from llmrec_pl.graph import SparseOperator
from llmrec_pl.tensors import at_least_float32

_BLOCK = 64
"""Width to which products are padded where equal inputs must give equal bits."""


@torch.no_grad()
def nearest_neighbours(x: Tensor, k: int, row_tile: int = 1024, column_tile: int = 8192) -> Tensor:
    """Return the k rows of highest cosine to each row, itself first.

    Memory is `row_tile` x `column_tile`, never n x n. Cosines are float32; equal ones are
    ordered by id, so the result does not depend on the tiles. A zero row, such as an item
    without the feature, has cosine 0 to all.

    Args:
        x: ``[n, d]``.
        k: neighbours of a row, itself included; all n where there are fewer.
        row_tile: rows compared at once, a multiple of 64.
        column_tile: with how many others, a multiple of 64.

    Returns:
        Ids int64 ``[n, min(k, n)]``, in falling order of cosine.

    Raises:
        ConfigError: `k` is not positive, or a tile no multiple of 64.
    """
    if k < 1:
        raise ConfigError(f"`k` must be positive, got {k}.")
    for name, tile in (("row_tile", row_tile), ("column_tile", column_tile)):
        if tile < 1 or tile % _BLOCK:
            raise ConfigError(f"`{name}` must be a multiple of {_BLOCK}, got {tile}.")
    n, k = len(x), min(k, len(x))
    with torch.autocast(x.device.type, enabled=False):
        # Products of a ragged edge round differently, which would break ties of equal rows.
        unit = F.pad(F.normalize(x.float(), dim=1), (0, 0, 0, -n % _BLOCK))
        tiles = [
            _nearest_of_tile(unit, n, start, row_tile, k, column_tile)
            for start in range(0, n, row_tile)
        ]
    return torch.cat([x.new_zeros(0, k, dtype=torch.int64), *tiles])[:n]


def _nearest_of_tile(
    unit: Tensor, n: int, start: int, row_tile: int, k: int, column_tile: int
) -> Tensor:
    """Return the neighbours of a tile's rows among the first n, merged over the columns."""
    rows = unit[start : start + row_tile]
    best = rows.new_zeros(len(rows), 0)
    ids = torch.zeros(len(rows), 0, dtype=torch.int64, device=rows.device)
    for left in range(0, n, column_tile):
        cosine = (rows @ unit[left : left + column_tile].T)[:, : n - left]
        if start - column_tile < left < start + row_tile:
            cosine.diagonal(start - left).fill_(torch.inf)
        columns = _largest(cosine, min(k, cosine.shape[1]))
        # Earlier columns have lower ids and come first, where a stable sort leaves them.
        merged = torch.cat([best, cosine.gather(1, columns)], dim=1)
        ids = torch.cat([ids, columns + left], dim=1)
        best, order = merged.sort(dim=1, descending=True, stable=True)
        best, ids = best[:, :k], ids.gather(1, order[:, :k])
    return ids


def _largest(values: Tensor, k: int) -> Tensor:
    """Return the columns of each row's k largest values, the lower of equal ones, ascending."""
    wanted = min(k + 1, values.shape[1])
    top, columns = values.topk(wanted, dim=1)
    columns = columns[:, :k]
    if wanted > k:
        # A tie across the border: which of the equal values is in must not be left to topk.
        tied = (top[:, k - 1] == top[:, k]).nonzero().squeeze(1)
        if len(tied):
            border, row = top[tied, k - 1].unsqueeze(1), values[tied]
            above, equal = row > border, row == border
            room = k - above.sum(dim=1, keepdim=True)
            kept = above | (equal & (equal.cumsum(dim=1) <= room))
            columns[tied] = kept.nonzero()[:, 1].view(len(tied), k)
    return columns.sort(dim=1).values


def neighbour_weights(x: Tensor, neighbours: Tensor, row_tile: int = 4096) -> Tensor:
    """Weight the edges to neighbours by cosine, cut at 0 and normalised symmetrically.

    ``D^-1/2 S D^-1/2`` with the row sums D of S, in float32 outside autocast (float64 if `x`
    is), with gradient for `x`. Rows without a positive weight stay empty.

    Args:
        x: ``[n, d]``.
        neighbours: distinct ids in each row, ``[n, k]``.
        row_tile: rows whose neighbours are gathered at once.

    Returns:
        ``[n, k]``.
    """
    with torch.autocast(x.device.type, enabled=False):
        unit = F.normalize(at_least_float32(x), dim=1)
        tiles = [slice(start, start + row_tile) for start in range(0, len(x), row_tile)]
        cosine = torch.cat([F.embedding(neighbours[t], unit) @ unit[t, :, None] for t in tiles])
        return _symmetric(cosine.squeeze(2), neighbours)


@torch.no_grad()
def constant_weights(x: Tensor, neighbours: Tensor, n_numbers: int = 2**24) -> Tensor:
    """Return `neighbour_weights` in float64, without gradient and without a copy of `x`.

    Raw features are wide: what is held beside them at a time is a tile of gathered rows.

    Args:
        x: ``[n, d]``.
        neighbours: distinct ids in each row, ``[n, k]``.
        n_numbers: numbers gathered at once, more where a single row takes more.

    Returns:
        float64 ``[n, k]``.
    """
    row_tile = max(1, n_numbers // max(1, neighbours.shape[1] * x.shape[1]))
    tiles = [slice(start, start + row_tile) for start in range(0, len(x), row_tile)]
    cosine = [_unit(x[neighbours[t]]) @ _unit(x[t]).unsqueeze(2) for t in tiles]
    return _symmetric(torch.cat(cosine).squeeze(2), neighbours)


def _unit(rows: Tensor) -> Tensor:
    return F.normalize(rows.double(), dim=-1)


def _symmetric(cosine: Tensor, neighbours: Tensor) -> Tensor:
    """Cut cosines ``[n, k]`` at 0 and divide by the roots of both ends' sums."""
    cosine = cosine.relu()
    degree = cosine.sum(dim=1)
    scale = torch.where(degree > 0, degree, 1.0).rsqrt()
    return scale.unsqueeze(1) * cosine * scale[neighbours]


def neighbour_operator(neighbours: Tensor, weight: Tensor) -> SparseOperator:
    """Return the constant operator that sums weighted neighbours ``[n, k]``."""
    n, k = neighbours.shape
    arrays = (weight.flatten().numpy(), neighbours.flatten().numpy(), np.arange(0, n * k + 1, k))
    return SparseOperator(sp.csr_array(arrays, shape=(n, n)))
