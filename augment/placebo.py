"""Controls: augmentations damaged on purpose, which an honest gain must not survive."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmrec_pl.data.features import Feature

Placebo = Literal["shuffled-profiles", "random-embeddings"]
PLACEBOS: tuple[Placebo, ...] = get_args(Placebo)


def apply_placebo(placebo: Placebo, features: Sequence[Feature], seed: int = 0) -> list[Feature]:
    """Return features with profiles dealt to other users, or with random vectors.

    Args:
        placebo: which.
        features: of an export.
        seed: of the permutation or the vectors.
    """
    rng = np.random.default_rng(seed)
    damage = _shuffled if placebo == "shuffled-profiles" else _random
    return [damage(f, rng) for f in features]


def _shuffled(feature: Feature, rng: np.random.Generator) -> Feature:
    """Deal the known rows to other known users; what is unknown stays so."""
    if feature.group != "profile" or feature.index is None:
        return feature
    index = feature.index.copy()
    known = np.flatnonzero(index >= 0)
    index[known] = index[rng.permutation(known)]
    return dataclasses.replace(feature, index=index)


def _random(feature: Feature, rng: np.random.Generator) -> Feature:
    """Replace each distinct row by Gaussian noise of the same length."""
    noise = rng.standard_normal(feature.values.shape)
    lengths = np.linalg.norm(np.asarray(feature.values, dtype=np.float64), axis=1, keepdims=True)
    noise *= lengths / np.linalg.norm(noise, axis=1, keepdims=True)
    return dataclasses.replace(feature, values=noise.astype(np.float32))
