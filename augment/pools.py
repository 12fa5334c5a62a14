"""Candidate pools C_u: what a base model would recommend, or a random placebo."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from augment.draws import joined, keyed_numbers, keyed_order
from augment.specs import RANDOM
from llmrec_pl.errors import AugmentationError, ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmrec_pl.data.dataset import InteractionDataset

_REMEDY = (
    "Make one with `python -m llmrec_pl predict --config RUN/config.yaml --ckpt_path "
    "RUN/checkpoints/best.ckpt` and name its candidates.parquet under `tasks.pairs.pool`, or say "
    "`tasks.pairs.pool=random` for the placebo."
)
_FEW = 8


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
        AugmentationError: damaged, made for other data, unknown or doubled ids, too few
            candidates, train items.
    """
    if source == RANDOM:
        return _content(_random(dataset, n, seed), dataset, RANDOM)
    if not source:
        raise ConfigError(f"`tasks.pairs.pool` names no candidate pool. {_REMEDY}")
    path = Path(source)
    if not path.is_file():
        raise ConfigError(f"no candidate pool at {source!r}. {_REMEDY}")
    model = _check_origin(path, dataset)
    items = _read(path, dataset, n)
    most = int((items >= 0).sum(axis=1).max(initial=0))
    if most < n:
        raise AugmentationError(
            f"{source!r} has {most} candidates a user, `tasks.pairs.n_candidates` is {n}. "
            f"Predict again with `--predictions.n_candidates {n}`."
        )
    _refuse_train_items(items, dataset, source)
    return _content(items, dataset, model)


# Files -----------------------------------------------------------------------------------------


def _check_origin(path: Path, dataset: InteractionDataset) -> str:
    about = path.with_name("predictions.json")
    if not about.is_file():
        raise AugmentationError(f"{str(about)!r} is missing beside the pool. {_REMEDY}")
    try:
        said = json.loads(about.read_text(encoding="utf-8"))
        found, model = str(said["dataset_fingerprint"]), str(said["model_fingerprint"])
    except (ValueError, KeyError, TypeError) as error:
        raise AugmentationError(
            f"{str(about)!r} does not say for which data and by which model the pool was made "
            f"({error!r}). {_REMEDY}"
        ) from error
    if found != dataset.fingerprint:
        raise AugmentationError(
            f"pool {str(path)!r} was made for data with fingerprint {found[:12]}…, "
            f"{dataset.name!r} has {dataset.fingerprint[:12]}…: another split would leak. "
            f"{_REMEDY}"
        )
    return model


def _read(path: Path, dataset: InteractionDataset, n: int) -> NDArray[np.int64]:
    columns = ["user_id", "item_id", "rank"]
    try:
        frame = pl.read_parquet(path, columns=columns)
    except (pl.exceptions.PolarsError, OSError) as error:
        first = str(error).splitlines()[0]
        raise AugmentationError(
            f"cannot read columns {columns} of {str(path)!r}: {first}. {_REMEDY}"
        ) from error
    frame = frame.with_columns(pl.col("user_id", "item_id").cast(pl.String))
    if frame.select("user_id", "item_id").is_duplicated().any():
        raise AugmentationError(f"{str(path)!r} offers a user one item twice. {_REMEDY}")
    users = pl.DataFrame({"user_id": dataset.user_ids.tolist()}).with_row_index("user")
    items = pl.DataFrame({"item_id": dataset.item_ids.tolist()}).with_row_index("item")
    frame = frame.join(users, on="user_id", how="left").join(items, on="item_id", how="left")
    lost = frame.filter(pl.col("user").is_null() | pl.col("item").is_null())
    if lost.height:
        user, item = lost.select("user_id", "item_id").row(0)
        raise AugmentationError(
            f"{str(path)!r} has user {user!r} or item {item!r}, which {dataset.name!r} lacks. "
            + _REMEDY
        )
    place = pl.int_range(pl.len()).over("user")
    frame = frame.sort("user", "rank", "item_id").with_columns(place.alias("place"))
    frame = frame.filter(pl.col("place") < n)
    pools = np.full((dataset.n_users, n), -1, dtype=np.int64)
    pools[frame["user"].to_numpy(), frame["place"].to_numpy()] = frame["item"].to_numpy()
    return pools


def _refuse_train_items(items: NDArray[np.int64], dataset: InteractionDataset, source: str) -> None:
    train = dataset.train
    liked_by = np.repeat(np.arange(dataset.n_users), np.diff(train.indptr))
    liked = liked_by * dataset.n_items + train.indices
    users, places = np.nonzero(items >= 0)
    again = np.isin(users * dataset.n_items + items[users, places], liked)
    if again.any():
        user = int(users[again][0])
        raise AugmentationError(
            f"pool {source!r} offers user {str(dataset.user_ids[user])!r} items of their own "
            f"train history; such a pool asks for what is known. {_REMEDY}"
        )


def _random(dataset: InteractionDataset, n: int, seed: int) -> NDArray[np.int64]:
    """Draw for each user `n` items that are not in train, all of them if there are fewer."""
    order: list[int] = np.argsort(dataset.item_ids, kind="stable").tolist()
    pools = np.full((dataset.n_users, n), -1, dtype=np.int64)
    train = dataset.train
    for user, name in enumerate(dataset.user_ids.tolist()):
        liked = set(train.indices[train.indptr[user] : train.indptr[user + 1]].tolist())
        free = len(order) - len(liked)
        if free < max(_FEW * n, len(order) // _FEW):  # drawing blindly would take long
            rest = [i for i in order if i not in liked]
            names = [str(dataset.item_ids[i]) for i in rest]
            drawn = [rest[i] for i in keyed_order(names, "pool", seed, name)][:n]
        else:
            drawn, numbers = [], keyed_numbers("pool", seed, name)
            while len(drawn) < n:
                item = order[next(numbers) % len(order)]
                if item not in liked:
                    liked.add(item)
                    drawn.append(item)
        pools[user, : len(drawn)] = drawn
    return pools


def _content(items: NDArray[np.int64], dataset: InteractionDataset, model: str) -> Pool:
    digest = hashlib.sha256()
    names = [*dataset.item_ids.tolist(), ""]
    rows = items.tolist()
    users = dataset.user_ids.tolist()
    for user in np.argsort(dataset.user_ids, kind="stable").tolist():
        digest.update(joined(users[user], *(names[i] for i in rows[user])) + b"\n")
    return Pool(items, digest.hexdigest(), model)
