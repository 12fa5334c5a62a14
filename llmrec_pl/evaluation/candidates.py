"""Which items are ranked against each other: all, or the cold or the warm ones alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from llmrec_pl.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmrec_pl.data.dataset import InteractionDataset

Candidates = Literal["all", "cold", "warm"]
CANDIDATES: tuple[Candidates, ...] = ("all", "cold", "warm")
_REMEDY = "`prepare --cold-items 0.2` holds a fifth of the items wholly out of train"


def train_popularity(dataset: InteractionDataset) -> NDArray[np.int64]:
    """Return the number of train interactions of each item, ``[n_items]``."""
    return np.bincount(dataset.train.indices, minlength=dataset.n_items)


def candidate_items(
    popularity: NDArray[np.int64], candidates: Candidates
) -> NDArray[np.int64] | None:
    """Return the items that are ranked against each other.

    Source: the all, warm and cold settings in Sec. 4 of Wei et al., "Contrastive Learning for
    Cold-Start Recommendation", MM 2021.

    Args:
        popularity: train interactions of each item, ``[n_items]``.
        candidates: "cold" for the items without any, "warm" for the others.

    Returns:
        Ids in rising order, ``[n]``; None for "all".
    """
    if candidates == "all":
        return None
    return np.flatnonzero((popularity == 0) == (candidates == "cold"))


def check_candidates(
    dataset: InteractionDataset, candidates: Candidates, k: int, stage: str
) -> None:
    """Refuse lists longer than the candidates, and candidates of which none is held out.

    Args:
        dataset: the data set.
        candidates: the setting ``evaluation.candidates``.
        k: longest list.
        stage: Lightning's name of it, such as "fit".

    Raises:
        ConfigError: naming the setting.
    """
    ranked = candidate_items(train_popularity(dataset), candidates)
    n = dataset.n_items if ranked is None else len(ranked)
    setting = f"`evaluation.candidates` is {candidates!r}"
    if n == 0:
        raise ConfigError(f"{setting}, but {dataset.name!r} has no {candidates} item; {_REMEDY}.")
    if k > n:
        has = f"the catalogue has {n}" if ranked is None else f"there are {n} {candidates}"
        raise ConfigError(
            f"`evaluation.ks` has K = {k} but {has} items; "
            "give smaller list lengths, such as `--evaluation.ks [5,10]`."
        )
    if ranked is None or stage == "predict":
        return
    split, relevant = ("test", dataset.test) if stage == "test" else ("val", dataset.val)
    if relevant[:, ranked].nnz == 0:
        raise ConfigError(
            f"{setting}, but no {candidates} item is held out in the {split} split of "
            f"{dataset.name!r}; {_REMEDY}."
        )
