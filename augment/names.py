"""Original ids and titles of users and items, for tables; dense numbers where they are gone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Self

from augment.memorisation import HISTORY
from llmrec_pl.errors import DatasetError

if TYPE_CHECKING:
    import sqlite3

    from llmrec_pl.data.dataset import InteractionDataset


class Names:
    """Labels of entities.

    Args:
        dataset: where ids and titles come from; None leaves dense numbers.
    """

    def __init__(self, dataset: InteractionDataset | None = None) -> None:
        self._users = None if dataset is None else dataset.user_ids
        self._items = None if dataset is None else dataset.item_ids
        self._titles = None if dataset is None else dataset.titles()

    @classmethod
    def of_last_run(cls, db: sqlite3.Connection) -> Self:
        """Take the data set of the store's last run, if its folder is still there."""
        row = db.execute(
            "SELECT config FROM run WHERE config IS NOT NULL ORDER BY id DESC LIMIT 1"
        ).fetchone()
        if row is None:
            return cls()
        from llmrec_pl.data.dataset import InteractionDataset

        try:
            return cls(InteractionDataset.load(json.loads(row[0])["dataset"], verify=False))
        except (DatasetError, OSError):
            return cls()

    def of(self, kind: str, entity: int, field: int) -> str:
        """Return what a wanted answer is about.

        Args:
            kind: the task.
            entity: dense id.
            field: number of the draw; for embeddings 0 is a user's profile, others are items; of
                the probes of memorisation the first two are about items.
        """
        of_user = kind == "memorisation" and field >= HISTORY
        if kind in ("pairs", "profiles") or (kind == "embed" and field == 0) or of_user:
            known = self._users is not None and entity < len(self._users)
            name = f"user {self._users[entity]}" if known else f"user #{entity}"  # type: ignore[index]
            return f"{name}, draw {field}" if kind == "pairs" and field else name
        if self._items is None or self._titles is None or entity >= len(self._items):
            return f"item #{entity}"
        title = self._titles[entity]
        return f"item {self._items[entity]}" + ("" if title == self._items[entity] else f" {title}")
