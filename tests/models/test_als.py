"""ALS against a dense sweep by the paper's equations, and its objective."""

import sys

import numpy as np
import pytest

from llmrec_pl.data.features import FeatureStore
from llmrec_pl.errors import ConfigError
from llmrec_pl.models.als import ALS

ALPHA, L2 = 3.0, 0.7


def built(dataset, **changes):
    pytest.importorskip("implicit")
    model = ALS(**{"embedding_dim": 4, "alpha": ALPHA, "l2_weight": L2, **changes})
    model.build_seeded(dataset, FeatureStore(), seed=1)
    return model.double().eval()


def factors(model):
    return model.user_factors.numpy().copy(), model.item_factors.numpy().copy()


def half_sweep(x, other):
    """Solve each row of Hu, Koren and Volinsky's Eq. (4) with the whole confidence matrix."""
    d = other.shape[1]
    rows = []
    for row in x:
        confidence = np.diag(1 + ALPHA * row)
        left = other.T @ confidence @ other + L2 * np.eye(d)
        rows.append(np.linalg.solve(left, other.T @ confidence @ row))
    return np.array(rows)


def objective(x, user, item):
    weight = 1 + ALPHA * x
    error = (weight * (x - user @ item.T) ** 2).sum()
    return error + L2 * ((user**2).sum() + (item**2).sum())


def test_a_sweep_is_two_half_sweeps_of_the_paper(toy_dataset):
    model = built(toy_dataset, exact=True)
    x = toy_dataset.train.toarray().astype(float)
    user, item = factors(model)
    for _ in range(3):
        model.refresh()
        user = half_sweep(x, item)
        item = half_sweep(x.T, user)
        np.testing.assert_allclose(model.user_factors.numpy(), user, rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(model.item_factors.numpy(), item, rtol=1e-8, atol=1e-12)


def test_conjugate_gradients_lower_the_objective_and_reach_its_minimum(toy_dataset):
    x = toy_dataset.train.toarray().astype(float)
    model, exact = built(toy_dataset), built(toy_dataset, exact=True)
    values = []
    for _ in range(200):
        model.refresh()
        exact.refresh()
        values.append(objective(x, *factors(model)))
    assert np.all(np.diff(values) <= 1e-9)
    assert values[-1] == pytest.approx(objective(x, *factors(exact)), rel=1e-4)


def test_users_and_items_without_interactions_score_zero(toy_dataset):
    model = built(toy_dataset, exact=True)
    model.refresh()
    assert not model.user_factors[6].any()
    assert not model.item_factors[8].any()


def test_the_same_seed_gives_the_same_factors(toy_dataset):
    first, second = built(toy_dataset), built(toy_dataset)
    first.refresh()
    second.refresh()
    np.testing.assert_array_equal(first.item_factors, second.item_factors)


def test_a_missing_library_is_named_with_its_remedy(toy_dataset, monkeypatch):
    model = built(toy_dataset)
    monkeypatch.setitem(sys.modules, "implicit.cpu.als", None)
    with pytest.raises(ConfigError, match=r"pip install 'llmrec_pl\[als\]'"):
        model.refresh()


@pytest.mark.parametrize("arguments", [{"alpha": 0.0}, {"l2_weight": 0.0}, {"embedding_dim": 0}])
def test_values_out_of_range_are_refused(arguments):
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        ALS(**arguments)
