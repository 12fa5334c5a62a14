from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_pl.errors import ConfigError, LLMRecError
from llmrec_pl.evaluation import ranking
from llmrec_pl.evaluation.ranking import NO_ITEM, sparse_rows, top_k

FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)


def one_hot_factors(scores):
    """Embeddings whose inner products are exactly `scores`: sums of x * 1 and x * 0."""
    scores = torch.tensor(scores, dtype=torch.float32)
    return torch.eye(len(scores)), scores.T.contiguous()


def naive_top_k(scores, k, seen=()):
    ids, values = [], []
    for u, row in enumerate(scores):
        rankable = [i for i in range(len(row)) if (u, i) not in seen]
        best = sorted(rankable, key=lambda i: (-row[i], i))[:k]
        ids.append(best + [NO_ITEM] * (k - len(best)))
        values.append([row[i] for i in best] + [-np.inf] * (k - len(best)))
    return np.array(ids), np.array(values, dtype=np.float32)


def as_pairs(seen):
    rows = sorted(seen)
    return np.array([u for u, _ in rows], np.int64), np.array([i for _, i in rows], np.int64)


@st.composite
def problems(draw):
    n, n_items = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    # Few distinct values bring ties; -0.0 and 0.0 are one score.
    values = st.sampled_from([-2.5, -1.0, -0.0, 0.0, 1.0, 3.0]) if draw(st.booleans()) else FLOATS
    row = st.lists(values, min_size=n_items, max_size=n_items)
    scores = draw(st.lists(row, min_size=n, max_size=n))
    pair = st.tuples(st.integers(0, n - 1), st.integers(0, n_items - 1))
    return scores, draw(st.integers(1, n_items)), draw(st.sets(pair)), draw(st.integers(1, 14))


@given(problems())
@settings(max_examples=400, deadline=None)
def test_equals_a_sort_by_score_then_id(problem):
    scores, k, seen, item_tile = problem
    user, item = one_hot_factors(scores)
    ids, values = top_k(user, item, k, as_pairs(seen), item_tile)
    expected_ids, expected_values = naive_top_k(scores, k, seen)
    np.testing.assert_array_equal(ids.numpy(), expected_ids)
    np.testing.assert_array_equal(values.numpy(), expected_values)
    assert ids.dtype == torch.int64
    assert values.dtype == torch.float32


@given(
    st.integers(1, 5),
    st.integers(32, 400),
    st.integers(1, 14),
    st.sampled_from([2, 30, 10**6]),
    st.floats(0, 1),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=200, deadline=None)
def test_long_lists_of_scores_equal_a_sort_too(n, n_items, k, n_values, share_seen, seed):
    random = np.random.default_rng(seed)
    scores = random.integers(n_values, size=(n, n_items)).astype(np.float32)
    masked = random.random((n, n_items)) < share_seen
    ids, values = top_k(*one_hot_factors(scores), k, np.nonzero(masked))
    seen = set(zip(*np.nonzero(masked), strict=True))
    expected_ids, expected_values = naive_top_k(scores, k, seen)
    np.testing.assert_array_equal(ids.numpy(), expected_ids)
    np.testing.assert_array_equal(values.numpy(), expected_values)


@pytest.mark.parametrize("item_tile", range(1, 26))
def test_each_tile_gives_the_same_list_of_equal_and_masked_scores(item_tile):
    scores = np.random.default_rng(0).integers(-2, 3, (3, 24)).astype(float)
    scores[1] = -7.0
    seen = {(0, i) for i in range(0, 24, 3)} | {(2, i) for i in range(20)}
    user, item = one_hot_factors(scores)
    ids, _ = top_k(user, item, 10, as_pairs(seen), item_tile)
    np.testing.assert_array_equal(ids.numpy(), naive_top_k(scores, 10, seen)[0])
    assert ids[1].tolist() == list(range(10))
    assert ids[2].tolist() == [*sorted(range(20, 24), key=lambda i: (-scores[2, i], i)), *[-1] * 6]


def test_k_may_be_the_whole_catalogue_and_everything_may_be_seen():
    user, item = one_hot_factors([[1.0, 3.0, 2.0], [1.0, 1.0, 1.0]])
    ids, values = top_k(user, item, 3, as_pairs({(1, 0), (1, 1), (1, 2)}), 2)
    assert ids.tolist() == [[1, 2, 0], [NO_ITEM] * 3]
    assert values[1].tolist() == [-np.inf] * 3


@pytest.mark.parametrize("item_tile", [4096, 100_000])
def test_large_catalogue_of_ties_keeps_the_lowest_ids(item_tile):
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 4, (2, 70_001)).astype(np.float32)
    user, item = one_hot_factors(scores)
    ids, _ = top_k(user, item, 50, None, item_tile)
    for row, found in zip(scores, ids.numpy(), strict=True):
        expected = np.lexsort((np.arange(len(row)), -row))[:50]
        np.testing.assert_array_equal(found, expected)


def test_neighbouring_floats_are_told_apart():
    base = np.float32(1.0)
    up = np.nextafter(base, np.float32(2))
    tiny = np.float32(1e-45)
    user, item = one_hot_factors([[base, up, base], [-up, -base, -up], [-tiny, 0.0, tiny]])
    ids, _ = top_k(user, item, 3, None, 1)
    assert ids.tolist() == [[1, 0, 2], [1, 0, 2], [2, 1, 0]]


@pytest.mark.parametrize("k", [3, 4, 6])
def test_negative_zero_ties_with_zero(k):
    # Two users, one dimension: sums of one product, which keep the sign of a zero.
    item = torch.tensor([[1.0], [-1.0], [0.0], [-1.0], [1.0], [1.0]])
    ids, values = top_k(torch.tensor([[0.0], [-0.0]]), item, k)
    assert ids.tolist() == [list(range(k))] * 2
    assert not values.any()


@pytest.mark.parametrize("tile", [1, 7, 50, 64])
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_user_and_item_tiles_change_no_bit_of_integer_embeddings(tile, rows):
    generator = torch.Generator().manual_seed(3)
    user = torch.randint(-3, 4, (40, 8), generator=generator).float()
    item = torch.randint(-3, 4, (50, 8), generator=generator).float()
    whole_ids, whole_values = top_k(user, item, 12)
    assert (whole_values[:, :-1] == whole_values[:, 1:]).any(), "the case needs ties"
    parts = [top_k(part, item, 12, None, tile) for part in user.split(rows)]
    assert torch.equal(torch.cat([p[0] for p in parts]), whole_ids)
    assert torch.equal(torch.cat([p[1] for p in parts]), whole_values)


@pytest.mark.parametrize(("rows", "tile"), [(1, 65), (9, 40), (65, 7), (130, 1), (64, 64)])
def test_tiles_change_no_list_of_gaussian_embeddings(rows, tile):
    generator = torch.Generator().manual_seed(4)
    user = torch.randn(130, 64, generator=generator)
    item = torch.randn(200, 64, generator=generator)
    whole_ids, whole_values = top_k(user, item, 20)
    parts = [top_k(part, item, 20, None, tile) for part in user.split(rows)]
    assert torch.equal(torch.cat([p[0] for p in parts]), whole_ids)
    # The same sums; only a BLAS with other kernels for the same sizes may round otherwise.
    torch.testing.assert_close(torch.cat([p[1] for p in parts]), whole_values, rtol=1e-6, atol=0)


@pytest.mark.parametrize("n", [63, 64, 193])
def test_masks_fall_on_the_right_users_of_every_block_in_any_order(n, monkeypatch):
    monkeypatch.setattr(ranking, "_CPU_SCORES", 64 * 30)  # several blocks also of few users
    rng = np.random.default_rng(6)
    scores = rng.integers(-3, 4, (n, 30)).astype(float)
    seen = {(int(u), int(i)) for u, i in zip(*np.nonzero(rng.random((n, 30)) < 0.4), strict=True)}
    user, item = one_hot_factors(scores)
    row, column = as_pairs(seen)
    shuffled = rng.permutation(len(row))
    for order in (slice(None), shuffled):
        for tile in (11, 30):
            ids, values = top_k(user, item, 8, (row[order], column[order]), tile)
            expected_ids, expected_values = naive_top_k(scores, 8, seen)
            np.testing.assert_array_equal(ids.numpy(), expected_ids)
            np.testing.assert_array_equal(values.numpy(), expected_values)


def test_autocast_leaves_scores_in_full_precision():
    generator = torch.Generator().manual_seed(5)
    user = torch.randn(8, 32, generator=generator)
    item = torch.randn(300, 32, generator=generator)
    ids, values = top_k(user, item, 20)
    with torch.autocast("cpu", torch.bfloat16):
        assert (user @ item.T).dtype == torch.bfloat16, "the case needs a live autocast"
        found_ids, found_values = top_k(user, item, 20)
    assert torch.equal(ids, found_ids)
    assert torch.equal(values, found_values)


def test_no_gradient_is_recorded():
    user, item = one_hot_factors([[2.0, 1.0]])
    _, values = top_k(user.requires_grad_(), item.requires_grad_(), 1)
    assert not values.requires_grad


@pytest.mark.parametrize("where", [0, 99, 319])
def test_one_nan_among_many_scores_is_an_error(where):
    user, item = torch.ones(3, 1), torch.arange(320.0).unsqueeze(1)
    item[where] = torch.nan
    with pytest.raises(LLMRecError, match="NaN"):
        top_k(user, item, 5)


@pytest.mark.parametrize("where", [0, 5, 9])
@pytest.mark.parametrize("item_tile", [1, 4, 10])
def test_one_nan_score_is_an_error(where, item_tile):
    scores = np.arange(20, dtype=float).reshape(2, 10)
    scores[1, where] = np.nan
    item = torch.tensor(scores, dtype=torch.float32)[1:].T
    with pytest.raises(LLMRecError, match="NaN"):
        top_k(torch.ones(1, 1), item, 3, None, item_tile)


@pytest.mark.parametrize(("k", "item_tile", "word"), [(0, 5, "K"), (4, 5, "K"), (1, 0, "tile")])
def test_sizes_out_of_range_are_errors(k, item_tile, word):
    with pytest.raises(ConfigError, match=word):
        top_k(torch.ones(1, 2), torch.ones(3, 2), k, None, item_tile)


def test_no_users_give_empty_lists():
    ids, values = top_k(torch.ones(0, 2), torch.ones(3, 2), 2, None, 2)
    assert ids.shape == values.shape == (0, 2)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_sparse_rows_equal_dense_indexing(data):
    n_users, n_items = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    cells = data.draw(
        st.lists(st.booleans(), min_size=n_users * n_items, max_size=n_users * n_items)
    )
    dense = np.array(cells).reshape(n_users, n_items)
    users = np.array(data.draw(st.lists(st.integers(0, n_users - 1), max_size=8)), dtype=np.int64)
    row, column = sparse_rows(sp.csr_array(dense), users)
    expected = np.nonzero(dense[users])
    np.testing.assert_array_equal(row, expected[0])
    np.testing.assert_array_equal(column, expected[1])
