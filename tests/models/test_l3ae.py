"""L3AE against one least-squares problem an item and phase, and its limit cases."""

import numpy as np
import pytest

import llmrec_pl.models.l3ae as l3ae
from llmrec_pl.data.features import Feature, FeatureStore
from llmrec_pl.errors import ConfigError, DatasetError
from llmrec_pl.models.ease import EASE
from llmrec_pl.models.l3ae import L3AE
from tests.models.conftest import N_ITEMS
from tests.models.test_ease import ridge_column_by_column, solved, weights_of


def store(*names, side="item"):
    random = np.random.default_rng(8)
    values = {n: random.normal(size=(N_ITEMS, 3 + i)) for i, n in enumerate(names)}
    return FeatureStore(
        {n: Feature(n, side, "modality", v.astype(np.float32)) for n, v in values.items()}
    )


def stacked(features):
    """Unit rows of all features, side by side, so that together they weigh as much as one."""
    parts = []
    for feature in features:
        rows = feature.dense().astype(float)
        for row in rows:
            row /= np.linalg.norm(row) or 1.0
        parts.append(rows / np.sqrt(len(features)))
    return np.hstack(parts).T


def towards(matrix, target, l2_weight, semantic_weight):
    n = matrix.shape[1]
    weights = np.zeros((n, n))
    for j in range(n):
        others = np.delete(np.arange(n), j)
        pull = np.sqrt(semantic_weight)
        rows = np.vstack(
            [matrix[:, others], np.sqrt(l2_weight) * np.eye(n - 1), pull * np.eye(n - 1)]
        )
        goal = np.concatenate([matrix[:, j], np.zeros(n - 1), pull * target[others, j]])
        weights[others, j] = np.linalg.lstsq(rows, goal, rcond=None)[0]
    return weights


@pytest.mark.parametrize("names", [("ton",), ("0", "bild & text"), ("a.b", "c", "weight")])
def test_both_phases_are_those_of_one_regression_an_item(toy_dataset, names):
    features = store(*names)
    model = solved(L3AE(None, 1.5, 0.4, 2.5), toy_dataset, features)
    x = toy_dataset.train.toarray().astype(float)
    semantic = ridge_column_by_column(stacked(list(features.values())), 0.4)
    expected = towards(x, semantic, 1.5, 2.5)
    np.testing.assert_allclose(weights_of(model), expected, rtol=1e-8, atol=1e-11)
    user, item = model.encode()
    np.testing.assert_allclose((user @ item.T).numpy(), x @ expected, rtol=1e-8, atol=1e-11)


def test_the_gradient_of_the_lagrangian_vanishes(toy_dataset, toy_features):
    b = weights_of(solved(L3AE(None, 1.5, 0.4, 2.5), toy_dataset, toy_features))
    s = weights_of(solved(L3AE(None, 0.0, 0.4, 1e12), toy_dataset, toy_features))
    gram = toy_dataset.train.toarray().astype(float)
    gram = gram.T @ gram
    gradient = gram @ b - gram + 1.5 * b + 2.5 * (b - s)
    assert not np.diag(b).any()
    np.testing.assert_allclose(gradient - np.diag(np.diag(gradient)), 0, atol=1e-9)


def test_without_semantic_weight_it_is_ease_and_needs_no_features(toy_dataset):
    model = solved(L3AE(None, 2.0, 1.0, 0.0), toy_dataset)
    np.testing.assert_array_equal(weights_of(model), weights_of(solved(EASE(2.0), toy_dataset)))
    assert not hasattr(model, "tables")


def test_with_a_large_semantic_weight_it_is_the_features_alone(toy_dataset, toy_features):
    model = solved(L3AE(["text"], 1.0, 0.4, 1e10), toy_dataset, toy_features)
    expected = ridge_column_by_column(stacked([toy_features["text"]]), 0.4)
    np.testing.assert_allclose(weights_of(model), expected, rtol=1e-6, atol=1e-8)


def test_scale_and_repetition_of_a_feature_do_not_count(toy_dataset):
    one = store("text")["text"]
    large = Feature("large", "item", "modality", 1000 * one.values)
    alone = solved(L3AE(), toy_dataset, FeatureStore({"text": one}))
    twice = solved(L3AE(), toy_dataset, FeatureStore({"text": one, "large": large}))
    np.testing.assert_allclose(weights_of(twice), weights_of(alone), rtol=1e-6, atol=1e-9)


def test_an_item_without_a_feature_is_drawn_towards_zero(toy_dataset, toy_features):
    model = solved(L3AE(["director"], 0.0, 0.4, 1e12), toy_dataset, toy_features)
    unknown = np.flatnonzero(toy_features["director"].index < 0)
    assert len(unknown)
    weights = weights_of(model)
    np.testing.assert_allclose(weights[unknown], 0, atol=1e-9)
    np.testing.assert_allclose(weights[:, unknown], 0, atol=1e-9)
    assert np.abs(weights).max() > 0.1


def test_all_item_modalities_are_the_default(toy_dataset, toy_features):
    default = weights_of(solved(L3AE(), toy_dataset, toy_features))
    named = weights_of(solved(L3AE(["image", "text"]), toy_dataset, toy_features))
    np.testing.assert_array_equal(default, named)
    text = weights_of(solved(L3AE(["text"]), toy_dataset, toy_features))
    assert np.abs(default - text).max() > 1e-4


def test_tiles_make_no_difference(toy_dataset, toy_features, monkeypatch):
    whole = weights_of(solved(L3AE(), toy_dataset, toy_features))
    monkeypatch.setattr(l3ae, "_TILE", 2)
    tiled = weights_of(solved(L3AE(), toy_dataset, toy_features))
    np.testing.assert_allclose(tiled, whole, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("modalities", "error", "message"),
    [
        ([], ConfigError, "one or more"),
        (["profile"], ConfigError, r"'profile'\] are of users"),
        (["sound"], DatasetError, "'sound'"),
    ],
)
def test_features_that_do_not_fit_are_named(toy_dataset, toy_features, modalities, error, message):
    with pytest.raises(error, match=message):
        solved(L3AE(modalities), toy_dataset, toy_features)


def test_no_modality_at_all_is_an_error(toy_dataset):
    with pytest.raises(ConfigError, match="L3AE needs at least one item modality"):
        solved(L3AE(), toy_dataset)


@pytest.mark.parametrize(
    "arguments",
    [
        {"l2_weight": -1.0},
        {"semantic_weight": -1.0},
        {"l2_weight": 0.0, "semantic_weight": 0.0},
        {"feature_l2_weight": 0.0},
    ],
)
def test_weights_out_of_range_are_refused(arguments):
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        L3AE(**arguments)
