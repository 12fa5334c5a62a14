"""What a reader of a raw format returns."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    from llmrec_pl.data.dataset import Split


@dataclasses.dataclass
class RawFeature:
    """A ready-made feature matrix that comes with the raw data.

    Attributes:
        side: "user" or "item".
        name: name in the feature store, such as ``image``.
        group: "modality", "profile" or "attribute".
        values: ``[n_rows, dim]`` floats; row r belongs to row r of the `users` or `items` table.
    """

    side: str
    name: str
    group: str
    values: NDArray[np.floating[Any]]


@dataclasses.dataclass
class RawDataset:
    """Interactions and tables with original ids, before filters, splits and renumbering.

    Attributes:
        name: default name of the data set.
        interactions: columns ``user_id``, ``item_id`` (strings), optional ``rating`` (float),
            ``timestamp`` (integer seconds) and ``split`` ("train", "val" or "test").
        users: column ``user_id`` and text columns, or None if nothing is known of users.
        items: column ``item_id`` and text columns such as ``title``, ``year``, ``genres``.
        provenance: where the data came from: reader, files, checksums, notes for the user.
        fixed_catalogue: keep every row of `users` and `items`, in that order, also those
            without interactions (needed where feature rows are numbered by it).
        given_splits: the splits that the raw data bring, empty where there are none.
        features: feature matrices that come with the data.
    """

    name: str
    interactions: pl.DataFrame
    users: pl.DataFrame | None = None
    items: pl.DataFrame | None = None
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
    fixed_catalogue: bool = False
    given_splits: tuple[Split, ...] = ()
    features: list[RawFeature] = dataclasses.field(default_factory=list)
