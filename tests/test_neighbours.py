"""Nearest neighbours against a full sort, their weights against dense loops."""

import numpy as np
import pytest
import torch

import llmrec_pl.neighbours as neighbours_module
from llmrec_pl.errors import ConfigError
from llmrec_pl.neighbours import constant_weights, nearest_neighbours, neighbour_weights


def naive_neighbours(x, k):
    """Order by cosine, then id; what is compared is rounded, so that equal rows are equal."""
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    cosine = np.round(unit @ unit.T, 6)
    np.fill_diagonal(cosine, np.inf)
    return np.argsort(-cosine, axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("tiles", [(64, 64), (128, 192), (1024, 8192), (64, 512)], ids=str)
@pytest.mark.parametrize("dim", [3, 64])
@pytest.mark.parametrize("k", [1, 10])
def test_neighbours_equal_a_full_sort_for_any_tiles_also_where_rows_repeat(tiles, dim, k):
    random = np.random.default_rng(3)
    distinct = random.integers(-2, 3, size=(60, dim)).astype(np.float32)
    distinct[0] = 0
    x = distinct[random.integers(60, size=333)]
    found = nearest_neighbours(torch.from_numpy(x), k, *tiles)
    np.testing.assert_array_equal(found.numpy(), naive_neighbours(x.astype(np.float64), k))


def test_a_row_is_its_own_first_neighbour_and_few_rows_are_all_returned():
    found = nearest_neighbours(torch.ones(3, 2), 10)
    assert found.tolist() == [[0, 1, 2], [1, 0, 2], [2, 0, 1]]
    assert nearest_neighbours(torch.zeros(0, 2), 4).shape == (0, 0)


@pytest.mark.parametrize(("argument", "value"), [("k", 0), ("row_tile", 100), ("column_tile", 0)])
def test_neighbours_out_of_range_are_refused_by_name(argument, value):
    with pytest.raises(ConfigError, match=argument):
        nearest_neighbours(torch.ones(3, 2), **{"k": 2, argument: value})


@pytest.mark.parametrize("row_tile", [2, 4096])
def test_neighbour_weights_and_their_gradient_equal_the_dense_ones(row_tile):
    torch.manual_seed(0)
    x = torch.randn(7, 3, dtype=torch.float64)
    x[2] = 0
    neighbours = nearest_neighbours(x, 4)
    outer = torch.randn(7, 4, dtype=torch.float64)
    gradients = []
    for dense in (False, True):
        y = x.clone().requires_grad_()
        weight = dense_weights(y, neighbours) if dense else None
        weight = neighbour_weights(y, neighbours, row_tile) if weight is None else weight
        (weight * outer).sum().backward()
        gradients.append((weight.detach(), y.grad[x.any(dim=1)]))
    torch.testing.assert_close(gradients[0], gradients[1])
    assert not gradients[0][0][2].any()


@pytest.mark.parametrize("n_numbers", [1, 30, 2**24])
def test_constant_weights_are_those_of_float64_for_any_tile(n_numbers):
    torch.manual_seed(0)
    x = torch.randn(7, 3)
    x[2] = 0
    neighbours = nearest_neighbours(x, 4)
    found = constant_weights(x, neighbours, n_numbers)
    torch.testing.assert_close(found, dense_weights(x.double(), neighbours))


@pytest.mark.parametrize("n_numbers", [2**10, 2**14])
def test_constant_weights_gather_no_more_numbers_than_told(monkeypatch, n_numbers):
    gathered = []
    unit = neighbours_module._unit
    monkeypatch.setattr(
        neighbours_module, "_unit", lambda rows: (gathered.append(rows.numel()), unit(rows))[1]
    )
    x = torch.randn(200, 16)
    constant_weights(x, nearest_neighbours(x, 5), n_numbers)
    assert max(gathered) <= n_numbers


def dense_weights(x, neighbours):
    cosine = [[0.0 * x[0, 0] for _ in row] for row in neighbours]
    for i, row in enumerate(neighbours.tolist()):
        for place, j in enumerate(row):
            if x[i].any() and x[j].any():
                value = x[i] @ x[j] / (x[i].norm() * x[j].norm())
                cosine[i][place] = value.clamp(min=0)
    s = torch.stack([torch.stack(row) for row in cosine])
    degree = [d if d > 0 else d + 1 for d in s.sum(1)]
    rows = [
        torch.stack([s[i, p] / (degree[i] * degree[j]) ** 0.5 for p, j in enumerate(row)])
        for i, row in enumerate(neighbours.tolist())
    ]
    return torch.stack(rows)
