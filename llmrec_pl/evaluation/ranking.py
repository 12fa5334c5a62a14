"""Exact top-K over a whole catalogue, in tiles, with ties broken by item id."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llmrec_pl.errors import ConfigError, LLMRecError

if TYPE_CHECKING:
    import scipy.sparse as sp
    from numpy.typing import NDArray

NO_ITEM = -1
"""Fills a list where fewer than K items can be ranked."""
_CPU_SCORES = 1 << 20
"""Scores of one product on a CPU, whose cache they stay in until the K best are found."""
_LEAST = 64
"""Rows of either matrix in a product, at least."""
_LOW = 0xFFFFFFFF
_SMALLEST_GROUP, _LARGEST_GROUP = 8, 64


def sparse_rows(
    matrix: sp.csr_array, users: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the entries of some rows of a CSR matrix as (position in `users`, item) pairs."""
    start, stop = matrix.indptr[users], matrix.indptr[users + 1]
    count = (stop - start).astype(np.int64)
    row = np.repeat(np.arange(len(users)), count)
    offset = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    return row, matrix.indices[np.repeat(start, count) + offset].astype(np.int64)


@torch.no_grad()
def top_k(
    user: Tensor,
    item: Tensor,
    k: int,
    seen: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
    item_tile: int = 32_768,
) -> tuple[Tensor, Tensor]:
    """Rank all items for some users and keep the best K.

    Scores take users x `item_tile` floats at most, never users x items, and on a CPU less: 64 x
    `item_tile`, or a million for smaller tiles. Equal scores are ordered by item id, so the
    result does not depend on the tiles. Scores are float32, also under autocast: half precision
    leaves few distinct scores among thousands of items.

    Args:
        user: ``[n, d]``.
        item: ``[n_items, d]``.
        k: list length, at most n_items.
        seen: (row, item) pairs that are not to be ranked, rows counting in `user`.
        item_tile: items scored at once.

    Returns:
        Item ids ``[n, k]`` (int64, `NO_ITEM` past the last rankable item), and their scores
        ``[n, k]`` (float32, -inf there).

    Raises:
        ConfigError: `k` or `item_tile` is out of range.
        LLMRecError: a score is NaN.
    """
    if not 1 <= k <= len(item):
        raise ConfigError(f"K must be between 1 and the {len(item)} items, got {k}.")
    if item_tile < 1:
        raise ConfigError(f"`item_tile` must be positive, got {item_tile}.")
    rows, columns = _sorted_by_row(seen)
    best: Tensor | None = None
    for start in range(0, len(item), item_tile):
        part = item[start : start + item_tile]
        if len(part) == len(item):
            inside = rows, columns
        else:
            here = (columns >= start) & (columns < start + len(part))
            inside = rows[here], columns[here] - start
        keys = _tile_top_k(user, part, min(k, len(part)), inside, start)
        best = keys if best is None else torch.cat([best, keys], dim=1)
        if best.shape[1] > k:
            best = best.topk(k, dim=1).values
    assert best is not None
    best = best.sort(dim=1, descending=True).values
    values = _to_score(best)
    ids = torch.where(values == -torch.inf, NO_ITEM, _to_item(best))
    return ids, values


def _sorted_by_row(
    seen: tuple[NDArray[np.int64], NDArray[np.int64]] | None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if seen is None:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    rows, columns = seen
    if (rows[1:] >= rows[:-1]).all():  # as `sparse_rows` gives them
        return rows, columns
    order = np.argsort(rows, kind="stable")
    return rows[order], columns[order]


def _tile_top_k(
    user: Tensor,
    item: Tensor,
    k: int,
    seen: tuple[NDArray[np.int64], NDArray[np.int64]],
    offset: int,
) -> Tensor:
    """Return the K largest (score, -id) keys of each user among some items, ``[n, k]`` int64.

    Args:
        user: ``[n, d]``.
        item: ``[m, d]``, the items from id `offset` on.
        k: at most m.
        seen: (row, column) pairs that are not to be ranked, sorted by row.
        offset: id of the first item.
    """
    on_cpu = user.device.type == "cpu"
    block = max(_LEAST, _CPU_SCORES // len(item)) if on_cpu else max(len(user), 1)
    starts = range(0, max(len(user), 1), block)
    cuts = np.searchsorted(seen[0], [*starts, len(user)])
    row, column = (torch.from_numpy(part).to(user.device) for part in seen)
    right = _padded(item.float())
    # One piece of memory for all blocks: fresh pages cost as much as the product.
    shape = max(min(block, len(user)), _LEAST), len(right)
    scores = torch.empty(shape, dtype=torch.float32, device=user.device)
    values = scores.new_empty(len(user), min(k + 1, len(item)))
    columns = torch.empty_like(values, dtype=torch.int64)
    for start, first, last in zip(starts, cuts[:-1], cuts[1:], strict=True):
        here = slice(start, min(start + block, len(user)))
        left = _padded(user[here].float())
        with torch.autocast(user.device.type, enabled=False):
            torch.mm(left, right.T, out=scores[: len(left)])
        valid = scores[: here.stop - start, : len(item)]
        valid[row[first:last] - start, column[first:last]] = -torch.inf
        _largest(valid, k, values[here], columns[here])
    return _to_key(values[:, :k], columns[:, :k] + offset)


def _padded(rows: Tensor) -> Tensor:
    """Append zeros where there are few rows.

    A BLAS sums in another order for a matrix of few rows; so padded, a score has the same bits
    in every tile.
    """
    return rows if len(rows) >= _LEAST else F.pad(rows, (0, 0, 0, _LEAST - len(rows)))


def _largest(scores: Tensor, k: int, values: Tensor, columns: Tensor) -> None:
    """Find the K largest scores of each row and their columns, and one more where there is.

    Of equal scores the first columns are among the K, in any order.

    Args:
        scores: ``[n, m]``.
        k: at most m.
        values: written, ``[n, min(k + 1, m)]`` float32.
        columns: written, of the same shape, int64.
    """
    _sorted_largest(scores, values, columns)
    # topk puts NaN first, so one look at the best score finds any.
    if bool(values[:, 0].isnan().any()):
        raise LLMRecError(
            "a score is NaN: training diverged or a feature is damaged; lower the learning rate "
            "or check the features with `python -m llmrec_pl describe`."
        )
    if values.shape[1] == k:
        return
    # A tie across the border of the list: which of the equal items is in must not be left to topk.
    tied = (values[:, k - 1] == values[:, k]) & (values[:, k] > -torch.inf)
    if bool(tied.any()):
        every = torch.arange(scores.shape[1], device=scores.device)
        keys = _to_key(scores[tied], every).topk(k, dim=1).values
        values[tied, :k], columns[tied, :k] = _to_score(keys), _to_item(keys)


def _sorted_largest(scores: Tensor, values: Tensor, columns: Tensor) -> None:
    """Do what `torch.topk` does, on a CPU in 0.6 to 0.8 times its time where columns are many.

    The K-th largest of the maxima of groups of columns is a lower bound of the K-th largest
    score; few scores reach it, and only these are sorted.

    Args:
        scores: ``[n, m]``.
        values: written, ``[n, K]``.
        columns: written, ``[n, K]``.
    """
    (n, m), k = scores.shape, values.shape[1]
    size = min(m // (2 * k), _LARGEST_GROUP)
    if n and scores.device.type == "cpu" and size >= _SMALLEST_GROUP:
        n_groups = m // size
        groups = scores[:, : n_groups * size].reshape(n, size, n_groups)
        maxima = groups.amax(dim=1)
        bound = maxima.topk(k, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
        place = torch.from_numpy(np.flatnonzero((scores >= bound).numpy()))
        row = place.div(m, rounding_mode="floor")
        count = torch.bincount(row, minlength=n)
        # None where a score is NaN, most where too few can be ranked.
        if k <= int(count.min()) and int(count.max()) <= n_groups:
            order = torch.arange(len(place)) - (count.cumsum(0) - count)[row]
            column, shape = place - row * m, (n, int(count.max()))
            found = scores.new_full(shape, -torch.inf)
            found[row, order] = scores[row, column]
            column = torch.zeros(shape, dtype=torch.int64).index_put_((row, order), column)
            chosen = found.topk(k, dim=1)
            values.copy_(chosen.values)
            torch.gather(column, 1, chosen.indices, out=columns)
            return
    torch.topk(scores, k, dim=1, out=(values, columns))


def _to_key(score: Tensor, item: Tensor) -> Tensor:
    """Pack score and item into one integer: a higher score wins, then a lower id."""
    bits = (score + 0.0).view(torch.int32).long()  # + 0.0 makes -0.0 equal to 0.0
    ordered = torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)
    return (ordered << 32) | (_LOW - item)


def _to_score(key: Tensor) -> Tensor:
    ordered = key >> 32
    bits = torch.where(ordered >= 0, ordered, ordered ^ 0x7FFFFFFF)
    return bits.int().view(torch.float32)


def _to_item(key: Tensor) -> Tensor:
    return _LOW - (key & _LOW)
