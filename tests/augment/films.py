"""A canonical data set of films, in any size and order, for runs from end to end."""

from __future__ import annotations

import numpy as np
import polars as pl

from llmrec_pl.data.dataset import FORMAT_VERSION, content_fingerprint, write_meta
from llmrec_pl.data.dataset import _read_ids as read_ids
from llmrec_pl.data.dataset import _read_splits as read_splits


def write_films(root, users=12, items=20, history=4, *, order=None, titles=(), unseen=()):
    """Users u0.. with `history` train items each; what u3 has does not depend on other users.

    Args:
        root: folder to make.
        users: number of users.
        items: number of items.
        history: train interactions a user.
        order: seed of another numbering of users and items; None for the usual one.
        titles: of the first items, in place of ordinary ones; None for no title.
        unseen: users with nothing in train.
    """
    root.mkdir(parents=True)
    rng = np.random.default_rng(order)
    user_at, item_at = (
        np.arange(n) if order is None else rng.permutation(n) for n in (users, items)
    )
    rows = []
    for u in range(users):
        liked = np.random.default_rng(u).choice(items, size=history + 2, replace=False)
        splits = ["train"] * (0 if u in unseen else history) + ["val", "test"]
        liked = liked[-len(splits) :]
        rows += [(int(user_at[u]), int(item_at[i]), s) for i, s in zip(liked, splits, strict=True)]
    frame = pl.DataFrame(rows, schema=["user", "item", "split"], orient="row")
    frame.write_parquet(root / "interactions.parquet")
    _table("user", user_at, {"user_id": [f"u{i}" for i in range(users)]}).write_parquet(
        root / "users.parquet"
    )
    about = {
        "item_id": [f"m{i}" for i in range(items)],
        "title": [
            titles[i] if i < len(titles) else f"The {i}th Night of the Silver River"
            for i in range(items)
        ],
        "year": [1960 + i for i in range(items)],
        "genres": ["Drama", "Comedy|Drama", "Horror", "Comedy"] * (items // 4) + [""] * (items % 4),
    }
    _table("item", item_at, about).write_parquet(root / "items.parquet")
    protocol = {"split": "given"}
    found = content_fingerprint(
        protocol,
        read_ids(root, "users.parquet", "user", users),
        read_ids(root, "items.parquet", "item", items),
        read_splits(root, users, items),
    )
    meta = {"format": FORMAT_VERSION, "name": "films", "n_users": users, "n_items": items}
    write_meta(root, {**meta, "protocol": protocol, "files": {}, "fingerprint": found})
    return root


def _table(name, place, columns):
    return pl.DataFrame({name: place, **columns}).sort(name)
