"""Presents an LLM's features as item modalities, so that multimodal models read them too.

Knows no model: what comes out is a list of features like any other.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from llmrec_pl.data.features import Feature
from llmrec_pl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def as_item_modalities(features: Sequence[Feature], train: sp.csr_array) -> list[Feature]:
    """Turn attributes of items and profiles of users into modalities of items.

    An attribute keeps its name and rows. A profile becomes ``<name>_mean``: for each item
    the mean over its train users whose profile is known, missing where there is none.

    Args:
        features: features of an augmentation.
        train: train interactions ``[n_users, n_items]``; no other split is looked at.

    Raises:
        ConfigError: there are no features.
    """
    if not features:
        raise ConfigError(
            "`data.llm_features_as_modalities` has nothing to add: no augmentation is given, or "
            "none of its profiles and attributes are in `data.llm_parts`. Give "
            "`--data.augmentation FOLDER` one that has some, or train without this option."
        )
    return [_as_item_modality(feature, train) for feature in features]


def _as_item_modality(feature: Feature, train: sp.csr_array) -> Feature:
    # Another identity than the feature's own: it means something else to a model.
    identity = hashlib.sha256(f"item modality\0{feature.sha256}".encode()).hexdigest()
    if feature.side == "item":
        return dataclasses.replace(feature, group="modality", sha256=identity)
    values, index = _mean_of_users(feature, train)
    name = f"{feature.name}_mean"
    return Feature(name, "item", "modality", values, index, identity, feature.info)


def _mean_of_users(
    feature: Feature, train: sp.csr_array
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return one float32 row for each item with known users, and an index into them."""
    index = np.arange(feature.n_rows) if feature.index is None else feature.index
    known = np.flatnonzero(index >= 0)
    ones = np.ones(len(known), dtype=np.float32)
    row_of = sp.csr_array((ones, (known, index[known])), (feature.n_rows, len(feature.values)))
    seen = sp.csr_array((np.ones(train.nnz, np.float32), train.indices, train.indptr), train.shape)
    counts = sp.csr_array(seen.T @ row_of)
    total = counts.sum(axis=1)
    items = np.flatnonzero(total)
    means = (counts[items] @ feature.values.astype(np.float32)) / total[items, None]
    rows = np.full(train.shape[1], -1, dtype=np.int64)
    rows[items] = np.arange(len(items))
    return means.astype(np.float32), rows
