"""Exact top-K over a whole catalogue, in tiles, with ties broken by item id."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from llmrec_pl.errors import ConfigError, LLMRecError

if TYPE_CHECKING:
    import scipy.sparse as sp
    from numpy.typing import NDArray

NO_ITEM = -1
"""Fills a list where fewer than K items can be ranked."""
_LOW = 0xFFFFFFFF


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

    Memory is users x `item_tile`, never users x items. Equal scores are ordered by item id, so
    the result does not depend on the tiles. Scores are float32, also under autocast: half
    precision leaves few distinct scores among thousands of items.

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
    rows, columns = (np.zeros(0, np.int64),) * 2 if seen is None else seen
    best: Tensor | None = None
    for start in range(0, len(item), item_tile):
        stop = min(start + item_tile, len(item))
        with torch.autocast(user.device.type, enabled=False):
            scores = user.float() @ item[start:stop].float().T
        inside = (columns >= start) & (columns < stop) if stop - start < len(item) else slice(None)
        row = torch.from_numpy(rows[inside]).to(scores.device)
        column = torch.from_numpy(columns[inside] - start).to(scores.device)
        scores[row, column] = -torch.inf
        keys = _tile_top_k(scores, min(k, stop - start), start)
        best = keys if best is None else torch.cat([best, keys], dim=1)
        if best.shape[1] > k:
            best = best.topk(k, dim=1).values
    assert best is not None
    best = best.sort(dim=1, descending=True).values
    values = _to_score(best)
    ids = torch.where(values == -torch.inf, NO_ITEM, _LOW - (best & _LOW))
    return ids, values


def _tile_top_k(scores: Tensor, k: int, offset: int) -> Tensor:
    """Return the K largest (score, -id) keys of each row, unordered, ``[n, k]`` int64."""
    wanted = min(k + 1, scores.shape[1])
    values, ids = scores.topk(wanted, dim=1)
    # topk puts NaN first, so one look at the best score finds any.
    if bool(values[:, 0].isnan().any()):
        raise LLMRecError(
            "a score is NaN: training diverged or a feature is damaged; lower the learning rate "
            "or check the features with `python -m llmrec_pl describe`."
        )
    keys = _to_key(values[:, :k], ids[:, :k] + offset)
    if wanted == k:
        return keys
    # A tie across the border of the list: which of the equal items is in must not be left to topk.
    tied = (values[:, k - 1] == values[:, k]) & (values[:, k] > -torch.inf)
    if bool(tied.any()):
        every = torch.arange(offset, offset + scores.shape[1], device=scores.device)
        keys[tied] = _to_key(scores[tied], every).topk(k, dim=1).values
    return keys


def _to_key(score: Tensor, item: Tensor) -> Tensor:
    """Pack score and item into one integer: a higher score wins, then a lower id."""
    bits = (score + 0.0).view(torch.int32).long()  # + 0.0 makes -0.0 equal to 0.0
    ordered = torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)
    return (ordered << 32) | (_LOW - item)


def _to_score(key: Tensor) -> Tensor:
    ordered = key >> 32
    bits = torch.where(ordered >= 0, ordered, ordered ^ 0x7FFFFFFF)
    return bits.int().view(torch.float32)
