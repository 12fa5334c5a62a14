"""What users liked, oldest first: of the train split and nothing else."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmrec_pl.data.dataset import InteractionDataset

_FILE, _TIME = "interactions.parquet", "timestamp"


class Histories:
    """Train items by user, by time where it is known, then by original id.

    Args:
        dataset: the data set.
        most: the last so many of each user are kept.
    """

    def __init__(self, dataset: InteractionDataset, most: int) -> None:
        train = dataset.train
        users = np.repeat(np.arange(dataset.n_users), np.diff(train.indptr))
        items = train.indices.astype(np.int64)
        rank = np.empty(dataset.n_items, dtype=np.int64)
        rank[np.argsort(dataset.item_ids, kind="stable")] = np.arange(dataset.n_items)
        times = _times(dataset, users, items)
        self._items = items[np.lexsort((rank[items], times, users))]
        self._ends = train.indptr[1:].astype(np.int64)
        self._starts = np.maximum(train.indptr[:-1], self._ends - most)

    def of(self, user: int) -> list[int]:
        """Return the last items of a user's train history."""
        found: list[int] = self._items[self._starts[user] : self._ends[user]].tolist()
        return found


def _times(
    dataset: InteractionDataset, users: NDArray[np.int64], items: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return when each train interaction was; 0 where that is not known."""
    known = None if dataset.root is None else _train_times(Path(dataset.root))
    if known is None:
        return np.zeros(len(items))
    pairs = pl.DataFrame({"user": users, "item": items})
    joined = pairs.join(known, on=["user", "item"], how="left", maintain_order="left")
    return joined[_TIME].fill_null(0.0).to_numpy()


def _train_times(root: Path) -> pl.DataFrame | None:
    path = root / _FILE
    if not path.is_file() or _TIME not in pl.read_parquet_schema(path):
        return None
    frame = pl.read_parquet(path, columns=["user", "item", "split", _TIME])
    return (
        frame.filter(pl.col("split") == "train")
        .group_by(pl.col("user", "item").cast(pl.Int64))
        .agg(pl.col(_TIME).cast(pl.Float64).max())
    )


def times_sha(dataset: InteractionDataset) -> str:
    """Return the sha256 of when train interactions were, "" if that is not known.

    It decides the order of histories and is not part of the data set's fingerprint.
    """
    if dataset.root is None:
        return ""
    found = (Path(dataset.root) / _FILE).stat()
    return _times_sha(str(dataset.root), found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=16)
def _times_sha(root: str, changed_ns: int, size: int) -> str:
    known = _train_times(Path(root))
    if known is None:
        return ""
    times = known.sort("user", "item")[_TIME].fill_null(0.0).to_numpy()
    return hashlib.sha256(np.asarray(times, dtype="<f8").tobytes()).hexdigest()
