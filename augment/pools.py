"""Candidate pools C_u: what a base model would recommend, or a random placebo."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from llmrec_pl.errors import AugmentationError, ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmrec_pl.data.dataset import InteractionDataset

RANDOM = "random"
_REMEDY = (
    "Make one with `python -m llmrec_pl predict --config RUN/config.yaml --ckpt_path "
    "RUN/checkpoints/best.ckpt` and name its candidates.parquet under `tasks.pairs.pool`, or say "
    "`tasks.pairs.pool=random` for the placebo."
)


@dataclass(frozen=True)
class Pool:
    """Candidates of every user.

    Attributes:
        items: dense ids `[n_users, n]`, best first, -1 where a pool is shorter.
        sha256: of the content, in original ids, so that it holds for a re-ordered data set.
        model_fingerprint: of the base model; "random" for the placebo.
    """

    items: NDArray[np.int64]
    sha256: str
    model_fingerprint: str


def load_pool(source: str, dataset: InteractionDataset, n: int, seed: int = 0) -> Pool:
    """Read the first `n` candidates of each user, or draw them.

    Args:
        source: ``candidates.parquet`` of a `predict` run, or "random".
        dataset: the data set they must have been made for.
        n: |C|.
        seed: of the random placebo.

    Raises:
        ConfigError: no source given, or the file is missing.
        AugmentationError: made for other data, unknown ids, too few candidates, train items.
    """
    if source == RANDOM:
        return _content(_random(dataset, n, seed), dataset, RANDOM)
    if not source:
        raise ConfigError(f"`tasks.pairs.pool` names no candidate pool. {_REMEDY}")
    path = Path(source)
    if not path.is_file():
        raise ConfigError(f"no candidate pool at {source!r}. {_REMEDY}")
    model = _check_origin(path, dataset)
    frame = pl.read_parquet(path, columns=["user_id", "item_id", "rank"]).sort("user_id", "rank")
    users = {name: i for i, name in enumerate(dataset.user_ids.tolist())}
    names = {name: i for i, name in enumerate(dataset.item_ids.tolist())}
    items = np.full((dataset.n_users, n), -1, dtype=np.int64)
    filled = np.zeros(dataset.n_users, dtype=np.int64)
    for user, item in frame.select(pl.col("user_id", "item_id").cast(pl.String)).iter_rows():
        if user not in users or item not in names:
            raise AugmentationError(
                f"{source!r} has user {user!r} or item {item!r}, which {dataset.name!r} lacks. "
                + _REMEDY
            )
        row = users[user]
        if filled[row] < n:
            items[row, filled[row]] = names[item]
            filled[row] += 1
    if 0 < filled.max() < n:
        raise AugmentationError(
            f"{source!r} has {filled.max()} candidates a user, `tasks.pairs.n_candidates` is {n}. "
            f"Predict again with `--predictions.n_candidates {n}`."
        )
    _refuse_train_items(items, dataset, source)
    return _content(items, dataset, model)


def _check_origin(path: Path, dataset: InteractionDataset) -> str:
    about = path.with_name("predictions.json")
    if not about.is_file():
        raise AugmentationError(f"{str(about)!r} is missing beside the pool. {_REMEDY}")
    said = json.loads(about.read_text(encoding="utf-8"))
    if said.get("dataset_fingerprint") != dataset.fingerprint:
        raise AugmentationError(
            f"pool {str(path)!r} was made for data with fingerprint "
            f"{str(said.get('dataset_fingerprint'))[:12]}…, {dataset.name!r} has "
            f"{dataset.fingerprint[:12]}…: another split would leak. {_REMEDY}"
        )
    return str(said.get("model_fingerprint", ""))


def _refuse_train_items(items: NDArray[np.int64], dataset: InteractionDataset, source: str) -> None:
    train = dataset.train
    for user in range(dataset.n_users):
        liked = train.indices[train.indptr[user] : train.indptr[user + 1]]
        if np.isin(items[user], liked).any():
            raise AugmentationError(
                f"pool {source!r} offers user {dataset.user_ids[user]} items of their own train "
                f"history; such a pool asks for what is known. {_REMEDY}"
            )


def _random(dataset: InteractionDataset, n: int, seed: int) -> NDArray[np.int64]:
    order = np.argsort(dataset.item_ids)  # the draw must not depend on dense numbering
    items = np.full((dataset.n_users, n), -1, dtype=np.int64)
    train = dataset.train
    for user, name in enumerate(dataset.user_ids.tolist()):
        liked = set(train.indices[train.indptr[user] : train.indptr[user + 1]].tolist())
        rng = np.random.default_rng(keyed_seed("pool", seed, name))
        kept = [int(i) for i in order[rng.permutation(len(order))[: n + len(liked)]]]
        kept = [i for i in kept if i not in liked][:n]
        items[user, : len(kept)] = kept
    return items


def keyed_seed(what: str, *parts: object) -> int:
    """Return a seed that depends on names only, never on numbering or order."""
    digest = hashlib.sha256("\0".join(map(str, (what, *parts))).encode()).digest()
    return int.from_bytes(digest[:8], "big")


def _content(items: NDArray[np.int64], dataset: InteractionDataset, model: str) -> Pool:
    digest = hashlib.sha256()
    names = [*dataset.item_ids.tolist(), ""]
    for user in np.argsort(dataset.user_ids):
        line = "\t".join([str(dataset.user_ids[user]), *(names[i] for i in items[user])])
        digest.update(line.encode() + b"\n")
    return Pool(items, digest.hexdigest(), model)
