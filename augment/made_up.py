"""A data set of given sizes and nothing else, to estimate what a real one would cost."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from llmrec_pl.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from llmrec_pl.data.dataset import InteractionDataset


@dataclasses.dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of a data set.

    Attributes:
        users: number of users.
        items: number of items.
        history: train items of each user.
        title: bytes of a title.
        genres: bytes of an item's categories; 0 for data without.
    """

    users: int
    items: int
    history: int = 20
    title: int = 18
    genres: int = 0


def parse_sizes(text: str) -> Sizes:
    """Read ``users=13187,items=17366,history=5``.

    Raises:
        ConfigError: a name is unknown or missing, or a size cannot be.
    """
    known = {f.name for f in dataclasses.fields(Sizes)}
    values: dict[str, int] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        if name not in known or not value.isdigit():
            raise ConfigError(
                f"`--sizes` has {part.strip()!r}; write `users=13187,items=17366,history=5`, and "
                "perhaps title=18 and genres=20, the bytes of each."
            )
        values[name] = int(value)
    sizes = Sizes(**{"users": 0, "items": 0, **values})
    if min(sizes.users, sizes.items, sizes.history) < 1 or sizes.history > sizes.items:
        raise ConfigError(
            f"`--sizes {text}` needs users, items and a history of at least one and at most all "
            "items."
        )
    return sizes


def make_up(sizes: Sizes, folder: Path) -> InteractionDataset:
    """Return a data set with made-up titles.

    Args:
        sizes: how large.
        folder: an empty folder for its tables.
    """
    import polars as pl

    from llmrec_pl.data.dataset import InteractionDataset

    users = np.repeat(np.arange(sizes.users), sizes.history)
    step = np.tile(np.arange(sizes.history), sizes.users)
    items = (users * 7919 + step) % sizes.items
    dataset = InteractionDataset.from_edges(
        "made up", sizes.users, sizes.items, np.stack([users, items])
    )
    numbers = range(sizes.items)
    table = {
        "item": list(numbers),
        "item_id": [str(i) for i in numbers],
        "title": [_words(i, sizes.title) for i in numbers],
        "year": [1950 + i % 56 for i in numbers],
    }
    if sizes.genres:
        table["genres"] = [_words(i % 20, sizes.genres) for i in numbers]
    pl.DataFrame(table).write_parquet(folder / "items.parquet")
    pl.DataFrame({"user": users, "item": items}).write_parquet(folder / "interactions.parquet")
    return dataclasses.replace(dataset, root=folder)


def _words(number: int, size: int) -> str:
    """Return distinct words of so many bytes."""
    text = f"{number:x} Night of the Silver River "
    return (text * (size // len(text) + 1))[:size].strip().ljust(size, "e")
