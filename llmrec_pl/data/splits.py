"""Filters and splits of interactions: pure functions over frames.

Every frame has columns ``user_id`` and ``item_id`` (strings), and may have ``rating`` (float),
``timestamp`` (integer seconds) and ``split``. A filter returns the rows that stay; the caller
counts and reports what went. Nothing here depends on the order of the rows.

Randomness is keyed: the place of an interaction in its user's shuffled history is a hash of
(seed, user id, item id). So a user's split does not change when other users come or go.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from llmrec_pl.data.dataset import SPLITS
from llmrec_pl.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# floats such as 0.29 * 100 lie a hair below the integer they mean
_EPSILON = 1e-9


def keyed_order(frame: pl.DataFrame, seed: int, purpose: str) -> NDArray[np.uint64]:
    """Return one pseudo-random number an interaction, a function of seed, user and item only.

    Args:
        frame: interactions, distinct in (user_id, item_id).
        seed: any integer.
        purpose: names the use, so that two uses of one seed are independent.

    Returns:
        ``[n_rows]`` keys; ties are as rare as equal 64-bit hashes.
    """
    users = _hash_ids(frame, "user_id", f"{seed}/{purpose}/user")
    items = _hash_ids(frame, "item_id", f"{seed}/{purpose}/item")
    return _mix(users ^ _mix(items))


def _hash_ids(frame: pl.DataFrame, column: str, key: str) -> NDArray[np.uint64]:
    """Hash each distinct id once with blake2b, which is the same on every platform."""
    ids = frame.select(pl.col(column).unique())
    hashes = [
        int.from_bytes(hashlib.blake2b(f"{key}\0{i}".encode(), digest_size=8).digest(), "little")
        for i in ids[column].to_list()
    ]
    table = ids.with_columns(pl.Series("hash", hashes, dtype=pl.UInt64))
    joined = frame.select(column).join(table, on=column, how="left", maintain_order="left")
    return joined["hash"].to_numpy()


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit numbers with the finalizer of SplitMix64 (Steele et al., OOPSLA 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def merge_duplicates(frame: pl.DataFrame) -> pl.DataFrame:
    """Keep one row for each (user, item): the latest, among those the highest rated.

    Where one pair lies in two given splits, its row in the earlier of train, val, test stays:
    a target that the model has trained on would be a leak.
    """
    order: list[pl.Expr] = [pl.col("user_id"), pl.col("item_id")]
    descending = [False, False]
    if "split" in frame.columns:
        order.append(pl.col("split").replace_strict({"train": 0, "val": 1, "test": 2}))
        descending.append(False)
    for column in ("timestamp", "rating"):
        if column in frame.columns:
            order.append(pl.col(column))
            descending.append(True)
    # few pairs repeat, if any: sorting only those is ten times faster on 20 million rows
    pair = ["user_id", "item_id"]
    repeated = frame.group_by(pair).len().filter(pl.col("len") > 1).select(pair)
    if not repeated.height:
        return frame
    ordered = frame.join(repeated, on=pair, how="semi").sort(
        order, descending=descending, nulls_last=True
    )
    kept = ordered.unique(pair, keep="first", maintain_order=True)
    return pl.concat([frame.join(repeated, on=pair, how="anti"), kept])


def filter_rating(frame: pl.DataFrame, min_rating: float) -> pl.DataFrame:
    """Keep interactions rated at least `min_rating`; they count as positive.

    Raises:
        DatasetError: there are no ratings.
    """
    _require(frame, "rating", "a rating threshold (`--min-rating`)")
    return frame.filter(pl.col("rating") >= min_rating)


def filter_text(frame: pl.DataFrame, items: pl.DataFrame | None, column: str) -> pl.DataFrame:
    """Keep interactions with items that have text in `column` of the item table.

    Raises:
        DatasetError: there is no item table, or it has no such column.
    """
    if items is None or column not in items.columns:
        columns = "no item table" if items is None else f"item columns {items.columns}"
        raise DatasetError(
            f"item text is required in column `{column}` but the data set has {columns}; give "
            "another column to `--require-text` or leave it out."
        )
    text = pl.col(column).cast(pl.String).str.strip_chars()
    known = items.filter(text.is_not_null() & (text != "")).select("item_id")
    return frame.join(known, on="item_id", how="semi")


def k_core(frame: pl.DataFrame, min_user: int, min_item: int) -> pl.DataFrame:
    """Keep the largest set where each user has `min_user` and each item `min_item` rows.

    Removing a user takes rows from items and the other way round, so it repeats until nothing
    changes; the result does not depend on the order of removal.
    """
    while True:
        kept = frame.filter(
            (pl.len().over("user_id") >= min_user) & (pl.len().over("item_id") >= min_item)
        )
        if kept.height == frame.height:
            return kept
        frame = kept


def cap_per_user(frame: pl.DataFrame, n: int, seed: int) -> pl.DataFrame:
    """Keep at most `n` interactions a user: the latest, or random ones without timestamps.

    Interactions at the same second are in keyed random order.
    """
    keyed = frame.with_columns(pl.Series("_key", keyed_order(frame, seed, "cap")))
    by = ["user_id", *(["timestamp"] if "timestamp" in frame.columns else []), "_key", "item_id"]
    descending = [column == "timestamp" for column in by]
    ordered = keyed.sort(by, descending=descending, nulls_last=True)
    return ordered.filter(_position() < n).drop("_key")


def ratio_counts(n: NDArray[np.int64], ratios: Sequence[float]) -> NDArray[np.int64]:
    """Return how many of each user's `n` interactions go to train, val and test.

    Val and test get ``floor(ratio * n)``, train the rest. Where that floor is 0 although the
    ratio is not, test first and then val take one from train, as long as train keeps one. So a
    user of 1 has (1, 0, 0), of 2 (1, 0, 1), of 3 (1, 1, 1), and of 25 at 0.8/0.1/0.1
    (21, 2, 2). These are the rules of RecBole's per-user ratio split.

    Args:
        n: ``[n_users]`` interactions a user.
        ratios: shares of train, val and test, not necessarily summing to one.

    Returns:
        ``[3, n_users]`` counts that sum to `n`.
    """
    shares = np.asarray(ratios, dtype=np.float64) / np.sum(ratios)
    exact = shares[:, None] * n
    counts: NDArray[np.int64] = np.floor(exact + _EPSILON).astype(np.int64)
    counts[0] = n - counts[1] - counts[2]
    for part in (2, 1):
        take = (shares[part] > 0) & (counts[part] == 0) & (counts[0] > 1)
        counts[part] += take
        counts[0] -= take
    # without a train share, a user still keeps one interaction to learn from
    for part in (1, 2):
        give = (counts[0] == 0) & (counts[part] > 0)
        counts[part] -= give
        counts[0] += give
    return counts


def split_random(frame: pl.DataFrame, ratios: Sequence[float], seed: int) -> pl.DataFrame:
    """Split each user's interactions at random by `ratios`; rounding as in `ratio_counts`.

    Returns:
        The rows with a column ``split``.
    """
    keyed = frame.with_columns(pl.Series("_key", keyed_order(frame, seed, "split")))
    sizes = keyed.group_by("user_id").len()
    counts = ratio_counts(sizes["len"].to_numpy().astype(np.int64), ratios)
    return _assign(keyed.sort("user_id", "_key", "item_id"), sizes, counts).drop("_key")


def split_last_out(frame: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Put each user's last interaction into test and the one before into val.

    A user of 2 has no validation interaction, a user of 1 only train. Interactions at the same
    second are in keyed random order, because their order in the file means nothing.

    Raises:
        DatasetError: there are no timestamps.
    """
    _require(frame, "timestamp", "the split `leave-last-out`")
    keyed = frame.with_columns(pl.Series("_key", keyed_order(frame, seed, "split")))
    ordered = keyed.sort("user_id", "timestamp", "_key", "item_id")
    from_end = pl.len().over("user_id") - 1 - _position()
    total = pl.len().over("user_id")
    return ordered.with_columns(
        pl.when((from_end == 0) & (total > 1))
        .then(pl.lit("test"))
        .when((from_end == 1) & (total > 2))
        .then(pl.lit("val"))
        .otherwise(pl.lit("train"))
        .alias("split")
    ).drop("_key")


def split_time(frame: pl.DataFrame, ratios: Sequence[float]) -> pl.DataFrame:
    """Cut all interactions at two points in time: train before val before test.

    The cuts are the timestamps of the interactions at the cumulated `ratios`; equal timestamps
    stay together, in the later part. A user may have no train interactions: that is what a new
    user is.

    Raises:
        DatasetError: there are no timestamps.
    """
    _require(frame, "timestamp", "the split `time`")
    times = np.sort(frame["timestamp"].to_numpy())
    if not len(times):
        return frame.with_columns(pl.lit("train").alias("split"))
    shares = np.cumsum(np.asarray(ratios, dtype=np.float64) / np.sum(ratios))
    cuts: list[int | None] = []
    for share in shares[:2]:
        place = int(np.floor(share * len(times) + _EPSILON))
        cuts.append(int(times[place]) if place < len(times) else None)
    time = pl.col("timestamp")
    before = [pl.lit(value=True) if cut is None else time < cut for cut in cuts]
    return frame.with_columns(
        pl.when(before[0])
        .then(pl.lit("train"))
        .when(before[1])
        .then(pl.lit("val"))
        .otherwise(pl.lit("test"))
        .alias("split")
    )


def hold_out_items(
    frame: pl.DataFrame, share: float, ratios: Sequence[float], seed: int
) -> pl.DataFrame:
    """Choose items at random and put all their interactions into val or test.

    Whether an item is chosen, and for which of the two, depends on (seed, item id) only; so the
    share holds over many items. Items for val and for test are different ones: a model selected
    on the first has not been selected on the second.

    Args:
        frame: interactions; a ``split`` they have is replaced.
        share: probability that an item is held out.
        ratios: shares of train, val and test; the last two divide the chosen items.
        seed: of the choice.

    Returns:
        The rows of the chosen items, with a column ``split``.
    """
    hashes = _hash_ids(frame, "item_id", f"{seed}/cold/item")
    uniform = (hashes >> np.uint64(11)) * 2.0**-53
    val_share = share * ratios[1] / (ratios[1] + ratios[2])
    split = np.where(uniform < val_share, "val", "test").tolist()
    chosen = pl.Series("_chosen", uniform < share)
    return frame.with_columns(pl.Series("split", split, dtype=pl.String)).filter(chosen)


def carve(frame: pl.DataFrame, val_ratio: float, test_ratio: float, seed: int) -> pl.DataFrame:
    """Move a random part of each user's train rows to val and test; other rows stay.

    A user's share is rounded at random (keyed by the user), so that the shares hold over all
    users. The rule of `split_random`, at least one where possible, would take two fifths of a
    data set with five interactions a user. A user keeps at least one train row.

    Args:
        frame: interactions with a column ``split``.
        val_ratio: share of the train rows to move to val; 0 leaves val as it is.
        test_ratio: the same for test.
        seed: of the keyed order and of the rounding.

    Returns:
        The rows with the new ``split``.
    """
    train = frame.filter(pl.col("split") == "train").drop("split")
    rest = frame.filter(pl.col("split") != "train")
    keyed = train.with_columns(pl.Series("_key", keyed_order(train, seed, "carve")))
    ordered = keyed.sort("user_id", "_key", "item_id").drop("_key")
    sizes = ordered.group_by("user_id").len()
    n = sizes["len"].to_numpy().astype(np.int64)
    counts = np.zeros((3, len(n)), dtype=np.int64)
    for part, ratio in ((2, test_ratio), (1, val_ratio)):
        hashes = _hash_ids(sizes, "user_id", f"{seed}/carve/{SPLITS[part]}")
        uniform = (hashes >> np.uint64(11)) * 2.0**-53
        wanted = np.floor(ratio * n + uniform + _EPSILON).astype(np.int64)
        counts[part] = np.minimum(wanted, n - 1 - counts.sum(axis=0))
    counts[0] = n - counts[1] - counts[2]
    carved = _assign(ordered, sizes, counts)
    return pl.concat([carved.select(frame.columns), rest])


def _assign(ordered: pl.DataFrame, sizes: pl.DataFrame, counts: NDArray[np.int64]) -> pl.DataFrame:
    """Give each user's first rows to train, the next to val, the last to test."""
    table = sizes.select(
        "user_id",
        pl.Series("_train", counts[0]),
        pl.Series("_val", counts[0] + counts[1]),
    )
    joined = ordered.join(table, on="user_id", how="left", maintain_order="left")
    return joined.with_columns(
        pl.when(_position() < pl.col("_train"))
        .then(pl.lit("train"))
        .when(_position() < pl.col("_val"))
        .then(pl.lit("val"))
        .otherwise(pl.lit("test"))
        .alias("split")
    ).drop("_train", "_val")


def _position() -> pl.Expr:
    """Place of a row among its user's rows, 0 first."""
    return pl.int_range(pl.len()).over("user_id")


def _require(frame: pl.DataFrame, column: str, need: str) -> None:
    if column not in frame.columns:
        raise DatasetError(
            f"{need} needs a column `{column}`, which the raw data do not have (they have "
            f"{frame.columns}). Choose another filter or split."
        )
    missing = frame[column].null_count()
    if missing:
        raise DatasetError(
            f"{need} needs a `{column}` in every row; {missing} of {frame.height} rows have none. "
            "Complete the raw data or choose another filter or split."
        )
