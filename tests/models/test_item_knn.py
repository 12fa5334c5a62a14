"""ItemKNN against a loop over all pairs of items, and its limit cases."""

import math

import numpy as np
import pytest

import llmrec_pl.models.item_knn as item_knn
from llmrec_pl.data.features import FeatureStore
from llmrec_pl.errors import ConfigError
from llmrec_pl.models.item_knn import ItemKNN


def solved(model, dataset):
    model.build_seeded(dataset, FeatureStore(), seed=1)
    model.double().refresh()
    return model.eval()


def scores_of(model):
    user, item = model.encode()
    return (user @ item.T).numpy()


def weighted(x, weighting, k1, b):
    n_items = x.shape[1]
    length = x.sum(axis=0)
    out = np.zeros_like(x)
    for user, item in zip(*np.nonzero(x), strict=True):
        value = 1.0
        if weighting != "none":
            value = math.log(n_items) - math.log(1 + x[user].sum())
        if weighting == "bm25":
            dampening = 1 - b + b * length[item] / length.mean()
            value *= (k1 + 1) / (k1 * dampening + 1)
        out[user, item] = value
    return out


def loop(x, n_neighbours, shrinkage, weighting="none", k1=1.2, b=0.75):
    w = weighted(x, weighting, k1, b)
    n = x.shape[1]
    scores = np.zeros_like(x)
    for i in range(n):
        similarity = {}
        for j in range(n):
            product = float(w[:, i] @ w[:, j])
            if j != i and product != 0:
                norms = np.linalg.norm(w[:, i]) * np.linalg.norm(w[:, j])
                similarity[j] = product / (norms + shrinkage)
        # Rounded: a loop adds in another order, and equal similarities must stay equal.
        kept = sorted(similarity, key=lambda j: (-round(similarity[j], 12), j))[:n_neighbours]
        for user in range(len(x)):
            scores[user, i] = sum(similarity[j] for j in kept if x[user, j])
    return scores


@pytest.mark.parametrize("weighting", ["none", "tf-idf", "bm25"])
@pytest.mark.parametrize("shrinkage", [0.0, 3.0])
@pytest.mark.parametrize("n_neighbours", [1, 3, 8, 100])
def test_scores_are_those_of_a_loop_over_all_pairs(toy_dataset, weighting, shrinkage, n_neighbours):
    model = solved(ItemKNN(n_neighbours, shrinkage, weighting, 0.9, 0.4), toy_dataset)
    x = toy_dataset.train.toarray().astype(float)
    expected = loop(x, n_neighbours, shrinkage, weighting, 0.9, 0.4)
    np.testing.assert_allclose(scores_of(model), expected, rtol=1e-9, atol=1e-12)


def test_with_a_very_large_shrinkage_it_ranks_by_the_plain_product(toy_dataset):
    model = solved(ItemKNN(100, 1e9, "none"), toy_dataset)
    x = toy_dataset.train.toarray().astype(float)
    common = x.T @ x
    np.fill_diagonal(common, 0)
    np.testing.assert_allclose(1e9 * scores_of(model), x @ common, rtol=1e-6)


def test_bm25_without_length_and_saturation_is_tf_idf(toy_dataset):
    bm25 = solved(ItemKNN(3, 2.0, "bm25", bm25_k1=0.0, bm25_b=0.0), toy_dataset)
    np.testing.assert_allclose(
        scores_of(bm25), scores_of(solved(ItemKNN(3, 2.0, "tf-idf"), toy_dataset)), rtol=1e-12
    )


def test_weights_are_those_of_implicit(toy_dataset):
    library = pytest.importorskip("implicit.nearest_neighbours")
    model = solved(ItemKNN(weighting="bm25", bm25_k1=0.9, bm25_b=0.4), toy_dataset)
    columns = toy_dataset.train.astype(float).T.tocsr()
    expected = library.bm25_weight(columns, K1=0.9, B=0.4).T
    np.testing.assert_allclose(model._weighted().toarray(), expected.toarray(), rtol=1e-6)
    model = solved(ItemKNN(weighting="tf-idf"), toy_dataset)
    expected = library.tfidf_weight(columns).T
    np.testing.assert_allclose(model._weighted().toarray(), expected.toarray(), rtol=1e-6)


def test_tiles_and_solving_again_make_no_difference(toy_dataset, monkeypatch):
    model = solved(ItemKNN(3), toy_dataset)
    whole = scores_of(model)
    monkeypatch.setattr(item_knn, "_TILE", 2)
    model.refresh()
    np.testing.assert_array_equal(scores_of(model), whole)


def test_memory_grows_with_items_not_with_their_square(toy_dataset):
    model = solved(ItemKNN(2), toy_dataset)
    assert {n: tuple(t.shape) for n, t in model.state_dict().items()} == {
        "neighbours": (9, 2),
        "similarity": (9, 2),
    }


@pytest.mark.parametrize(
    "arguments",
    [
        {"n_neighbours": 0},
        {"shrinkage": -1.0},
        {"bm25_k1": -1.0},
        {"bm25_b": 1.5},
        {"weighting": "idf"},
    ],
)
def test_values_out_of_range_are_refused(arguments):
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        ItemKNN(**arguments)
