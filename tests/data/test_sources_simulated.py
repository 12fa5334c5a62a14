from __future__ import annotations

import numpy as np
import pytest

from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.data.prepare import Protocol, prepare_dataset
from llmrec_pl.data.sources import read
from llmrec_pl.data.sources.simulated import simulate
from llmrec_pl.errors import DatasetError


def test_equal_arguments_equal_data():
    first, second, other = simulate(), read("simulated"), simulate(seed=1)
    assert first.interactions.equals(second.interactions)
    assert first.items.equals(second.items)
    assert first.users.equals(second.users)
    assert not first.interactions.equals(other.interactions)


def test_tables_are_plausible():
    raw = simulate(n_users=50, n_items=80)
    assert raw.users.height == 50
    assert raw.items.height == 80
    assert raw.items["title"].n_unique() == 80
    assert raw.items["plot"].null_count() == 0
    assert raw.interactions["rating"].is_between(1, 5).all()
    assert not raw.interactions.select("user_id", "item_id").is_duplicated().any()
    assert raw.interactions["timestamp"].min() >= 946_684_800
    assert "plot" not in simulate(n_users=1, n_items=30, plots=False).items.columns
    with pytest.raises(DatasetError, match="got 0 and 500"):
        simulate(n_users=0)


def recall(scores, dataset, k=20):
    scores = np.where(dataset.train.toarray() | dataset.val.toarray(), -np.inf, scores)
    top = np.argsort(-scores, axis=1)[:, :k]
    test = dataset.splits["test"].toarray()
    users = test.any(axis=1)
    hits = np.take_along_axis(test, top, axis=1).sum(axis=1)
    return (hits[users] / test[users].sum(axis=1)).mean()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_tastes_can_be_learned(tmp_path, seed):
    prepare_dataset(simulate(seed=seed), tmp_path / "out", Protocol(min_rating=4))
    dataset = InteractionDataset.load(tmp_path / "out", open_test=True)
    train = dataset.train.toarray().astype(np.float64)
    popularity = np.broadcast_to(train.sum(axis=0), train.shape)
    u, s, v = np.linalg.svd(train, full_matrices=False)
    low_rank = (u[:, :8] * s[:8]) @ v[:8]
    assert recall(low_rank, dataset) > 2 * recall(popularity, dataset)
