"""Writes tiny canonical data set folders for tests, without `prepare`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from llmrec_pl.data.dataset import FORMAT_VERSION, SPLITS, content_fingerprint, write_meta
from llmrec_pl.data.dataset import _read_ids as read_ids
from llmrec_pl.data.dataset import _read_splits as read_splits

if TYPE_CHECKING:
    from pathlib import Path

TITLES = ["Alien", "Brazil", "Brazil", None, "Down by Law", "Eraserhead"]
GENRES = ["Horror|Sci-Fi", "Sci-Fi", "Sci-Fi", "", "Comedy", "Horror"]
YEARS = [1979.0, 1985.0, 1985.0, None, 1986.0, 1977.0]


def write_folder(root: Path, items: dict[str, list[Any]] | None = None) -> Path:
    """Three users, six items with ids m1..m6, one interaction of each split a user."""
    root.mkdir(parents=True, exist_ok=True)
    items = items or {"title": TITLES, "genres": GENRES, "year": YEARS}
    n_items, n_users = len(next(iter(items.values()))), 3
    rows = [
        (u, (2 * u + s) % n_items, split) for u in range(n_users) for s, split in enumerate(SPLITS)
    ]
    frame = pl.DataFrame(rows, schema=["user", "item", "split"], orient="row")
    frame.write_parquet(root / "interactions.parquet")
    users = {"user": range(n_users), "user_id": [f"u{i + 1}" for i in range(n_users)]}
    pl.DataFrame({**users, "job": ["cook", "cook", None]}).write_parquet(root / "users.parquet")
    ids = {"item": range(n_items), "item_id": [f"m{i + 1}" for i in range(n_items)]}
    pl.DataFrame({**ids, **items}, strict=False).write_parquet(root / "items.parquet")
    protocol = {"split": "given"}
    found = content_fingerprint(
        protocol,
        read_ids(root, "users.parquet", "user", n_users),
        read_ids(root, "items.parquet", "item", n_items),
        read_splits(root, n_users, n_items),
    )
    meta = {
        "format": FORMAT_VERSION,
        "name": "tiny",
        "n_users": n_users,
        "n_items": n_items,
        "protocol": protocol,
        "files": {},
        "fingerprint": found,
    }
    write_meta(root, meta)
    return root
