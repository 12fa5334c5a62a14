"""Controls: augmentations damaged on purpose, which an honest gain must not survive."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from augment.draws import keyed_seed
from augment.specs import RANDOM
from llmrec_pl.errors import AugmentationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from augment.specs import TaskSpec
    from llmrec_pl.data.dataset import InteractionDataset
    from llmrec_pl.data.features import Feature

Placebo = Literal["shuffled-profiles", "random-embeddings"]
PLACEBOS: tuple[Placebo, ...] = get_args(Placebo)

HIDDEN: dict[Placebo, frozenset[str]] = {
    "shuffled-profiles": frozenset({"profiles.parquet"}),
    "random-embeddings": frozenset({"profiles.parquet", "attributes.parquet"}),
}
"""Tables that would not be the texts behind the damaged vectors, and so are left out."""


def apply_placebo(
    placebo: Placebo, features: Sequence[Feature], dataset: InteractionDataset, seed: int = 0
) -> list[Feature]:
    """Return features with profiles dealt to other users, or with random vectors.

    The draw depends on names only: not on the numbering of users, nor on which other fields an
    export has.

    Args:
        placebo: which.
        features: of an export.
        dataset: gives the users' names.
        seed: of the draw.

    Raises:
        AugmentationError: there is nothing to damage.
    """
    hit = [f for f in features if placebo == "random-embeddings" or f.group == "profile"]
    if not hit:
        raise AugmentationError(
            f"placebo {placebo!r} has nothing to damage: the export has no such vectors. Run the "
            "`profiles`, `attributes` and `embed` tasks first."
        )
    made = []
    for feature in features:
        rng = np.random.default_rng(keyed_seed("placebo", placebo, seed, feature.name))
        if placebo == "random-embeddings":
            feature = _random(feature, rng)
        elif feature.group == "profile":
            feature = _shuffled(feature, dataset, rng)
        made.append(feature)
    return made


def _shuffled(feature: Feature, dataset: InteractionDataset, rng: np.random.Generator) -> Feature:
    """Deal known rows along one circle of all known users: nobody keeps theirs.

    What is unknown stays so.
    """
    index = np.arange(feature.n_rows) if feature.index is None else feature.index.copy()
    known = np.flatnonzero(index >= 0)
    if len(known) < 2:
        raise AugmentationError(
            "placebo 'shuffled-profiles' needs the profiles of two users at least, the export "
            f"has {len(known)}. Ask for more with `python -m augment run`."
        )
    by_name = known[np.argsort(dataset.user_ids[known], kind="stable")]
    circle = by_name[rng.permutation(len(by_name))]
    index[circle] = index[np.roll(circle, 1)]
    return dataclasses.replace(feature, index=index)


def _random(feature: Feature, rng: np.random.Generator) -> Feature:
    """Replace each distinct row by Gaussian noise of the same length."""
    noise = rng.standard_normal(feature.values.shape)
    lengths = np.linalg.norm(np.asarray(feature.values, dtype=np.float64), axis=1, keepdims=True)
    noise *= lengths / np.linalg.norm(noise, axis=1, keepdims=True)
    return dataclasses.replace(feature, values=noise.astype(feature.values.dtype))


def placebos_of(specs: Iterable[TaskSpec], placebo: Placebo | None) -> list[str]:
    """Return the names of all that was done on purpose, in the asking or afterwards.

    Heuristics look at metadata by id, so masked titles are no placebo for them.
    """
    found = []
    for spec in specs:
        if spec.settings.get("mask_titles") and not spec.prompt_set.startswith("heuristic"):
            found.append("masked-titles")
        if spec.settings.get("pool_model") == RANDOM:
            found.append("random-pool")
    return sorted(set(found)) + ([placebo] if placebo else [])
