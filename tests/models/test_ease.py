"""EASE against one least-squares problem an item, and what its optimum must satisfy."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch

import llmrec_pl.models.linear_autoencoder as linear_autoencoder
from llmrec_pl.data.features import FeatureStore
from llmrec_pl.errors import ConfigError
from llmrec_pl.models.ease import EASE


def solved(model, dataset, features=None):
    model.build_seeded(dataset, features or FeatureStore(), seed=1)
    model.double().refresh()
    return model.eval()


def weights_of(model):
    return model.item_weights.numpy()


def ridge_column_by_column(matrix, l2_weight):
    """Predict each column from all others, each by its own least-squares problem."""
    n = matrix.shape[1]
    weights = np.zeros((n, n))
    for j in range(n):
        others = np.delete(np.arange(n), j)
        rows = np.vstack([matrix[:, others], np.sqrt(l2_weight) * np.eye(n - 1)])
        target = np.concatenate([matrix[:, j], np.zeros(n - 1)])
        weights[others, j] = np.linalg.lstsq(rows, target, rcond=None)[0]
    return weights


@pytest.mark.parametrize("l2_weight", [0.3, 5.0, 300.0])
def test_weights_are_those_of_one_regression_an_item(toy_dataset, l2_weight):
    model = solved(EASE(l2_weight), toy_dataset)
    x = toy_dataset.train.toarray().astype(float)
    expected = ridge_column_by_column(x, l2_weight)
    np.testing.assert_allclose(weights_of(model), expected, rtol=1e-9, atol=1e-12)
    user, item = model.encode()
    np.testing.assert_allclose((user @ item.T).numpy(), x @ expected, rtol=1e-9, atol=1e-12)


def test_the_gradient_of_the_lagrangian_vanishes(toy_dataset):
    b = weights_of(solved(EASE(2.0), toy_dataset))
    gram = toy_dataset.train.toarray().astype(float)
    gram = gram.T @ gram
    gradient = gram @ b - gram + 2.0 * b
    assert not np.diag(b).any()
    off_diagonal = gradient - np.diag(np.diag(gradient))
    np.testing.assert_allclose(off_diagonal, 0, atol=1e-12)


def test_with_a_large_weight_it_counts_common_users(toy_dataset):
    b = weights_of(solved(EASE(1e9), toy_dataset))
    x = toy_dataset.train.toarray().astype(float)
    common = x.T @ x
    np.fill_diagonal(common, 0)
    np.testing.assert_allclose(1e9 * b, common, rtol=1e-6, atol=1e-6)


def test_an_llms_edges_in_the_graph_count_as_interactions(toy_dataset):
    extra = np.array([[6, 6], [8, 0]])
    more = dataclasses.replace(toy_dataset, extra_edges=extra)
    x = toy_dataset.train.toarray().astype(float)
    x[extra[0], extra[1]] = 1
    expected = ridge_column_by_column(x, 2.0)
    np.testing.assert_allclose(weights_of(solved(EASE(2.0), more)), expected, rtol=1e-9, atol=1e-12)


def test_tiles_of_the_gram_matrix_make_no_difference(toy_dataset, monkeypatch):
    whole = weights_of(solved(EASE(2.0), toy_dataset))
    monkeypatch.setattr(linear_autoencoder, "_TILE", 2)
    np.testing.assert_array_equal(weights_of(solved(EASE(2.0), toy_dataset)), whole)


def test_inversion_stays_in_place():
    random = np.random.default_rng(0)
    rows = random.normal(size=(60, 40))
    matrix = rows.T @ rows + np.eye(40)
    inverse = torch.from_numpy(matrix.copy())
    place = inverse.data_ptr()
    linear_autoencoder.invert_in_place(inverse)
    assert inverse.data_ptr() == place
    np.testing.assert_allclose(inverse.numpy(), np.linalg.inv(matrix), rtol=1e-9, atol=1e-12)


MEASURE = """
import resource, torch
from llmrec_pl.models.linear_autoencoder import ridge_without_self
matrix = torch.zeros(3000, 3000).fill_(1.0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ridge_without_self(matrix, 500.0)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss differs")
def test_solving_takes_no_second_matrix():
    more = int(subprocess.check_output([sys.executable, "-c", MEASURE], text=True))
    assert more < 0.8 * 4 * 3000**2


def test_a_matrix_that_has_no_inverse_is_refused():
    with pytest.raises(ConfigError, match="raise the L2 weights"):
        linear_autoencoder.invert_in_place(torch.ones(3, 3))


def test_too_little_memory_is_told_before_any_is_taken(toy_dataset, monkeypatch):
    monkeypatch.setattr(linear_autoencoder, "available_memory", lambda: 100)
    with pytest.raises(ConfigError, match=r"9 x 9 items.*item_knn"):
        solved(EASE(), toy_dataset)


def test_available_memory_is_some_and_below_a_petabyte():
    assert 1e6 < linear_autoencoder.available_memory() < 1e15


@pytest.mark.parametrize("l2_weight", [0.0, -1.0])
def test_a_weight_out_of_range_is_refused(l2_weight):
    with pytest.raises(ConfigError, match="l2_weight"):
        EASE(l2_weight)
