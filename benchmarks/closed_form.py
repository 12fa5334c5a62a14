"""References that are solved at once: popularity, and item-based nearest neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.scoring import evaluate_scores
from llmrec_pl.data.features import FeatureStore
from llmrec_pl.models.item_knn import ItemKNN, Weighting
from llmrec_pl.models.popularity import Popularity

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from llmrec_pl.data.dataset import InteractionDataset
    from llmrec_pl.models.closed_form import ClosedForm

NEIGHBOURS = (20, 50, 100, 200)
SHRINKAGES = (0.0, 50.0)
WEIGHTINGS: tuple[Weighting, ...] = ("none", "bm25")


def solve(
    model: ClosedForm, dataset: InteractionDataset
) -> Callable[[NDArray[np.int64]], NDArray[np.float32]]:
    """Solve a model that needs no features, and return its scores as a function of users."""
    model.build_seeded(dataset, FeatureStore(), seed=0)
    model.refresh()

    def scores(users: NDArray[np.int64]) -> NDArray[np.float32]:
        user, item = model.ranking_rows(torch.from_numpy(users))
        found: NDArray[np.float32] = (user @ item.T).numpy()
        return found

    return scores


def evaluate_closed_form(
    dataset: InteractionDataset, opened: InteractionDataset | None
) -> list[dict[str, Any]]:
    """Evaluate both references, the settings of item-kNN chosen on validation Recall@20.

    Args:
        dataset: with the test split sealed.
        opened: the same with the test split open, or None to leave it sealed.

    Returns:
        One record a reference.
    """
    grid = [(w, s, k) for w in WEIGHTINGS for s in SHRINKAGES for k in NEIGHBOURS]
    scorers = {g: solve(ItemKNN(g[2], g[1], g[0]), dataset) for g in grid}
    validation = {g: evaluate_scores(s, dataset, "val") for g, s in scorers.items()}
    best = max(grid, key=lambda g: validation[g]["recall@20"])
    popular = solve(Popularity(), dataset)
    settings = dict(zip(("weighting", "shrinkage", "n_neighbours"), best, strict=True))
    tried = {", ".join(map(str, g)): validation[g]["recall@20"] for g in grid}
    records: list[dict[str, Any]] = [
        {"model": "popularity", "settings": {}, "trials": {}},
        {"model": "item-kNN", "settings": settings, "trials": tried},
    ]
    records[0]["validation"] = evaluate_scores(popular, dataset, "val")
    records[1]["validation"] = validation[best]
    for record, scorer in zip(records, (popular, scorers[best]), strict=True):
        record["library"] = "closed form"
        record["test"] = None if opened is None else evaluate_scores(scorer, opened, "test")
    return records
