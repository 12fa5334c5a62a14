"""Made-up data of any size with the shape of real ones: power-law degrees, repeated attributes.

Equal arguments give equal data. There is no taste in them: they are for time and memory only.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrec_pl.data.dataset import (
    FORMAT_VERSION,
    INTERACTIONS,
    ITEMS,
    META,
    SPLITS,
    USERS,
    InteractionDataset,
    content_fingerprint,
    edges_to_csr,
    read_meta,
    sha256_file,
    write_meta,
)
from llmrec_pl.data.features import Feature, FeatureStore, Group, Side

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from llmrec_pl.data.dataset import Split

ACTIVITY, POPULARITY, SHIFT = 0.6, 1.0, 20.0
"""Degrees fall with ``(rank + SHIFT) ** -exponent``, of users and of items."""
NETFLIX_USERS, NETFLIX_ITEMS, NETFLIX_EDGES = 13_187, 17_366, 68_933
NETFLIX_WIDTHS = {"text": 768, "image": 512, "profile": 1536}
NETFLIX_ATTRIBUTES = {"title": 0, "director": 5000, "country": 100, "language": 100, "year": 100}
"""Distinct values of each attribute of 1,536 numbers, 0 where every item has its own."""


def power_law(
    rng: np.random.Generator, n: int, size: int, exponent: float, shift: float = SHIFT
) -> NDArray[np.int64]:
    """Draw ranks below `n` whose density falls with ``(rank + shift) ** -exponent``.

    By inversion of the continuous law, so time and memory do not depend on `n`.
    """
    low, high, uniform = shift, n + shift, rng.random(size)
    if exponent == 1:
        drawn = low * (high / low) ** uniform
    else:
        power = 1 - exponent
        drawn = (low**power + uniform * (high**power - low**power)) ** (1 / power)
    return np.minimum((drawn - shift).astype(np.int64), n - 1)


def power_law_edges(
    n_users: int,
    n_items: int,
    n_edges: int,
    *,
    seed: int = 0,
    activity: float = ACTIVITY,
    popularity: float = POPULARITY,
) -> NDArray[np.int64]:
    """Draw distinct (user, item) pairs, at least one a user; ids say nothing of the degree.

    Args:
        n_users: number of users.
        n_items: number of items; the rarest may stay without an edge.
        n_edges: number of pairs, from `n_users` to half of all pairs.
        seed: of everything.
        activity: exponent of the users' degrees.
        popularity: exponent of the items' degrees.

    Returns:
        ``[2, n_edges]``, sorted by user, then item.

    Raises:
        ValueError: `n_edges` is out of range.
    """
    if not n_users <= n_edges <= n_users * n_items // 2:
        raise ValueError(
            f"`n_edges` must be between {n_users} and half of all pairs, got {n_edges}."
        )
    rng = np.random.default_rng(seed)
    user_of, item_of = rng.permutation(n_users), rng.permutation(n_items)
    # The first edge of each user stays whatever is drawn again or dropped.
    first = np.arange(n_users) * n_items + item_of[power_law(rng, n_items, n_users, popularity)]
    key = np.empty(0, dtype=np.int64)
    wanted = n_edges - n_users
    while len(key) < wanted:
        size = int((wanted - len(key)) * 1.1) + 16
        user = user_of[power_law(rng, n_users, size, activity)]
        drawn = user * n_items + item_of[power_law(rng, n_items, size, popularity)]
        key = np.union1d(key, np.setdiff1d(drawn, first))
    if len(key) > wanted:
        key = np.delete(key, rng.choice(len(key), size=len(key) - wanted, replace=False))
    key = np.sort(np.concatenate([key, first]))
    return np.stack(np.divmod(key, n_items))


def hold_out(
    edges: NDArray[np.int64], n_users: int, n_held: int, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Take one edge each from some users that have more than one.

    Args:
        edges: ``[2, n]``, sorted by user.
        n_users: number of users.
        n_held: edges to take; fewer where too few users have two.
        seed: of everything.

    Returns:
        What stays ``[2, n - m]``, and what was taken ``[2, m]``, both still sorted.
    """
    rng = np.random.default_rng(seed)
    degree = np.bincount(edges[0], minlength=n_users)
    several = np.flatnonzero(degree > 1)
    users = rng.choice(several, size=min(n_held, len(several)), replace=False)
    start = np.concatenate([[0], np.cumsum(degree)])[users]
    taken = np.zeros(edges.shape[1], dtype=bool)
    taken[start + rng.integers(degree[users])] = True
    return edges[:, ~taken], edges[:, taken]


def netflix_size(
    *,
    repeated: bool = False,
    dtype: type[np.floating[Any]] = np.float32,
    seed: int = 0,
    scale: float = 1.0,
) -> tuple[InteractionDataset, FeatureStore]:
    """Make a data set as large as the released Netflix one, with all features of LLMRec.

    13,187 users, 17,366 items, 68,933 train edges, one validation edge a user. Text (768) and
    image (512) of items, profile (1,536) of users, five attributes (1,536) of items; rows have
    length 1 on average. Users have about as many edges each, as in the released data.

    Args:
        repeated: attributes repeat as those of real films do (see `NETFLIX_ATTRIBUTES`), instead
            of being all distinct.
        dtype: of the features, float16 or float32.
        seed: of everything.
        scale: of users, items, edges and distinct attributes, below 1 to try things out.
    """
    n_users, n_items, n_edges = (
        int(n * scale) for n in (NETFLIX_USERS, NETFLIX_ITEMS, NETFLIX_EDGES)
    )
    rng = np.random.default_rng(seed)
    edges = power_law_edges(n_users, n_items, n_edges + n_users, seed=seed, activity=0.1)
    train, val = hold_out(edges, n_users, n_users, seed)
    # Users with a single edge keep it: the surplus leaves train elsewhere.
    surplus = _surplus(train, n_edges, rng)
    dataset = InteractionDataset.from_edges(
        "netflix-size", n_users, n_items, train[:, ~surplus], val
    )

    def feature(name: str, side: Side, group: Group, n: int, n_distinct: int = 0) -> Feature:
        width = NETFLIX_WIDTHS.get(name, 1536)
        rows = rng.standard_normal((n_distinct or n, width), dtype=np.float32)
        rows *= np.float32(width**-0.5)
        index = _repeats(rng, n_distinct, n) if n_distinct else None
        return Feature(name, side, group, rows.astype(dtype, copy=False), index)

    features = [
        feature("text", "item", "modality", n_items),
        feature("image", "item", "modality", n_items),
        feature("profile", "user", "profile", n_users),
    ]
    for name, n_distinct in NETFLIX_ATTRIBUTES.items():
        count = int(n_distinct * scale) if repeated else 0
        features.append(feature(name, "item", "attribute", n_items, count))
    return dataset, FeatureStore({f.name: f for f in features})


def _repeats(rng: np.random.Generator, n_distinct: int, n: int) -> NDArray[np.int64]:
    """Give each of `n` rows a distinct value; few values are common, none is unused."""
    further = power_law(rng, n_distinct, n - n_distinct, 1.0, shift=2.0)
    return rng.permutation(np.concatenate([np.arange(n_distinct), further]))


def _surplus(
    train: NDArray[np.int64], n_wanted: int, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Mark edges above a number, none of them a user's first."""
    later = np.flatnonzero(np.diff(train[0], prepend=-1) == 0)
    marked = np.zeros(train.shape[1], dtype=bool)
    marked[rng.choice(later, size=train.shape[1] - n_wanted, replace=False)] = True
    return marked


def write_folder(root: Path, n_users: int, n_items: int, n_edges: int, *, seed: int = 0) -> Path:
    """Write a canonical folder with power-law edges, unless one of these sizes is there.

    A twentieth of the users have one validation edge, as many one test edge.

    Args:
        root: the folder.
        n_users: number of users.
        n_items: number of items.
        n_edges: train edges, and the held out ones beside them.
        seed: of everything.

    Returns:
        The folder.
    """
    import polars as pl

    protocol = {"split": "synthetic", "sizes": [n_users, n_items, n_edges], "seed": seed}
    if (root / META).is_file() and read_meta(root)["protocol"] == protocol:
        return root
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    rest = power_law_edges(n_users, n_items, n_edges, seed=seed)
    parts: dict[Split, NDArray[np.int64]] = {}
    for number, split in enumerate(("val", "test")):
        rest, parts[split] = hold_out(rest, n_users, n_users // 20, seed + number)  # type: ignore[index]
    parts["train"] = rest
    frames = [
        pl.DataFrame({"user": pairs[0].astype(np.int32), "item": pairs[1].astype(np.int32)})
        .with_columns(split=pl.lit(split))
        .select("user", "item", "split")
        for split, pairs in parts.items()
    ]
    pl.concat(frames).sort("user", "item").write_parquet(root / INTERACTIONS)
    ids = {}
    for side, file, n in (("user", USERS, n_users), ("item", ITEMS, n_items)):
        ids[side] = np.array([f"{side[0]}{i}" for i in range(n)])
        frame = pl.DataFrame({side: np.arange(n, dtype=np.int32), f"{side}_id": ids[side].tolist()})
        frame.write_parquet(root / file)
    splits = {s: edges_to_csr(parts[s][0], parts[s][1], n_users, n_items) for s in SPLITS}
    meta = {
        "format": FORMAT_VERSION,
        "name": f"synthetic-{n_users}",
        "n_users": n_users,
        "n_items": n_items,
        "protocol": protocol,
        "files": {f: sha256_file(root / f) for f in (INTERACTIONS, USERS, ITEMS)},
        "fingerprint": content_fingerprint(protocol, ids["user"], ids["item"], splits),
        "features": {},
    }
    write_meta(root, meta)
    return root
