"""Made-up data have the sizes asked for and power-law degrees, and repeat by their seed."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import synthetic
from benchmarks.synthetic import hold_out, netflix_size, power_law, power_law_edges, write_folder
from llmrec_pl.data.dataset import InteractionDataset


def pairs(edges: np.ndarray) -> set[tuple[int, int]]:
    return set(zip(*edges.tolist(), strict=True))


@pytest.mark.parametrize("size", [(5, 4, 5), (30, 10, 150), (400, 120, 8000)], ids=str)
def test_edges_are_distinct_sorted_and_reach_every_user(size: tuple[int, int, int]) -> None:
    n_users, n_items, n_edges = size
    edges = power_law_edges(n_users, n_items, n_edges, seed=3)
    assert edges.shape == (2, n_edges)
    assert (np.diff(edges[0] * n_items + edges[1]) > 0).all()
    assert set(edges[0].tolist()) == set(range(n_users))
    assert edges[1].min() >= 0
    assert edges[1].max() < n_items
    assert np.array_equal(edges, power_law_edges(n_users, n_items, n_edges, seed=3))
    assert not np.array_equal(edges, power_law_edges(n_users, n_items, n_edges, seed=4))


@pytest.mark.parametrize("exponent", [0.1, 0.6, 1.0, 1.4])
def test_ranks_follow_the_law(exponent: float) -> None:
    n, size = 1000, 200_000
    found = np.bincount(power_law(np.random.default_rng(0), n, size, exponent, 20.0), minlength=n)
    edge = np.arange(n + 1) + 20.0
    mass = np.log(edge) if exponent == 1 else edge ** (1 - exponent) / (1 - exponent)
    expected = size * np.diff(mass) / (mass[-1] - mass[0])
    assert (np.abs(found - expected) < 6 * np.sqrt(expected)).all()


def test_more_edges_than_half_of_all_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="n_edges"):
        power_law_edges(4, 4, 9)


def test_held_out_edges_are_one_a_user_and_leave_one() -> None:
    edges = power_law_edges(60, 40, 300)
    rest, held = hold_out(edges, 60, 50, seed=1)
    assert pairs(rest) | pairs(held) == pairs(edges)
    assert rest.shape[1] + held.shape[1] == 300
    assert (np.diff(held[0]) > 0).all()
    assert set(rest[0].tolist()) == set(range(60))


def test_netflix_size_has_the_released_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "NETFLIX_WIDTHS", {"text": 3, "image": 2, "profile": 4})
    dataset, features = netflix_size(repeated=True, dtype=np.float16)
    assert (dataset.n_users, dataset.n_items, dataset.train.nnz) == (13_187, 17_366, 68_933)
    assert dataset.train.multiply(dataset.val).nnz == 0
    shapes = {n: (f.values.shape, f.n_rows, f.values.dtype) for n, f in features.items()}
    half = np.dtype(np.float16)
    assert shapes == {
        "text": ((17_366, 3), 17_366, half),
        "image": ((17_366, 2), 17_366, half),
        "profile": ((13_187, 4), 13_187, half),
        "title": ((17_366, 1536), 17_366, half),
        "director": ((5000, 1536), 17_366, half),
        "country": ((100, 1536), 17_366, half),
        "language": ((100, 1536), 17_366, half),
        "year": ((100, 1536), 17_366, half),
    }
    for feature in features.values():
        if feature.index is not None:
            assert set(feature.index.tolist()) == set(range(len(feature.values)))


def test_a_folder_loads_and_is_written_once(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", 200, 60, 2000, seed=1)
    dataset = InteractionDataset.load(root, open_test=True)
    assert (dataset.n_users, dataset.n_items) == (200, 60)
    assert dataset.train.nnz + dataset.val.nnz + dataset.test.nnz == 2000
    assert dataset.val.nnz == dataset.test.nnz == 10
    stamp = (root / "interactions.parquet").stat().st_mtime_ns
    write_folder(root, 200, 60, 2000, seed=1)
    assert (root / "interactions.parquet").stat().st_mtime_ns == stamp
    write_folder(root, 200, 60, 1999, seed=1)
    assert InteractionDataset.load(root).train.nnz == 1979
