from __future__ import annotations

import random
from collections import Counter
from unittest import mock

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from llmrec_pl.data import triplets
from llmrec_pl.data.triplets import LLM, OBSERVED, ManyNegativesBatch, TripletSampler
from llmrec_pl.errors import AugmentationError, ConfigError, DatasetError

UNLIKELY = 1e-4
"""A correct sampler falls below this p-value once in ten thousand seeds; the seeds are fixed."""


def csr(dense):
    return sp.csr_array(np.asarray(dense, dtype=bool))


def random_train(seed, n_users=50, n_items=30, share=0.3):
    dense = np.random.default_rng(seed).random((n_users, n_items)) < share
    dense[:, 0] = False  # so that each user has a negative
    dense[::7] = False  # and some have no interaction
    return csr(dense)


@st.composite
def trains(draw):
    """Up to 6 users and 8 items, at least one interaction and one negative item a user."""
    n_users, n_items = draw(st.integers(1, 6)), draw(st.integers(2, 8))
    dense = np.zeros((n_users, n_items), dtype=bool)
    for user in range(n_users):
        liked = draw(st.sets(st.integers(0, n_items - 1), max_size=n_items - 1))
        dense[user, sorted(liked)] = True
    if not dense.any():
        dense[-1, 0] = True
    return csr(dense)


def pairs(matrix):
    users, items = matrix.tocoo().coords
    return list(zip(users.tolist(), items.tolist(), strict=True))


def observed(batch):
    rows = batch.source == OBSERVED
    return list(zip(batch.user[rows].tolist(), batch.pos_item[rows].tolist(), strict=True))


def equal(a, b):
    fields = ("user", "pos_item", "neg_item", "source")
    return all(np.array_equal(getattr(a, f), getattr(b, f)) for f in fields)


def some_edges(train, seed, n=60):
    rng = np.random.default_rng(seed)
    n_users, n_items = train.shape
    return np.stack([rng.integers(n_users, size=n), *rng.integers(n_items, size=(2, n))])


# A batch is a function of its key.


@pytest.mark.parametrize("sampling", ["edge", "user"])
def test_batches_depend_on_the_key_alone(sampling):
    train = random_train(0)
    arguments = (train, 16, 5, sampling, some_edges(train, 1), 0.5, 2)
    sampler = TripletSampler(*arguments)
    keys = [(e, s, r) for e in range(2) for s in range(sampler.n_batches) for r in range(2)]
    in_order = {key: sampler.batch(*key) for key in keys}
    random.Random(0).shuffle(keys)
    np.random.seed(1)  # noqa: NPY002 (global state must not matter)
    again = TripletSampler(*arguments)
    for key in keys:
        assert equal(again.batch(*key), in_order[key])


@pytest.mark.parametrize("sampling", ["edge", "user"])
def test_each_word_of_the_key_changes_the_batch(sampling):
    train = random_train(0)

    def batch(seed=5, epoch=1, step=1, rank=1):
        return TripletSampler(train, 16, seed, sampling, world_size=3).batch(epoch, step, rank)

    first = batch()
    for change in ({"seed": 6}, {"epoch": 0}, {"step": 0}, {"rank": 0}):
        assert not equal(batch(**change), first), change


def test_callers_may_change_a_batch():
    sampler = TripletSampler(random_train(0), 16, 0)
    kept = sampler.batch(0, 0).user.copy()
    for values in (sampler.batch(0, 0).user, sampler.batch(0, 0).pos_item):
        values[:] = 0
    assert np.array_equal(sampler.batch(0, 0).user, kept)


# Edge sampling.


@given(trains(), st.integers(1, 7), st.integers(1, 5), st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_an_epoch_visits_each_interaction_once_but_for_the_padding(train, size, world, epoch):
    sampler = TripletSampler(train, size, 9, world_size=world)
    visits = Counter()
    for step in range(sampler.n_batches):
        ranks = [observed(sampler.batch(epoch, step, rank)) for rank in range(world)]
        assert len({len(r) for r in ranks}) == 1, "ranks must stay in step"
        assert 1 <= len(ranks[0]) <= size
        if step < sampler.n_batches - 1:
            assert len(ranks[0]) == size
        for rank in ranks:
            visits.update(rank)
    assert set(visits) == set(pairs(train))
    repeats = visits.total() - train.nnz
    assert repeats == sampler.n_padding == (world - train.nnz % world) % world
    if repeats < train.nnz:
        assert max(visits.values()) <= 2


@given(trains(), st.integers(1, 4), st.integers(2, 4))
@settings(max_examples=100, deadline=None)
def test_ranks_of_a_global_batch_are_disjoint_but_for_the_padding(train, size, world):
    sampler = TripletSampler(train, size, 9, world_size=world)
    for step in range(sampler.n_batches):
        visits = Counter(p for r in range(world) for p in observed(sampler.batch(0, step, r)))
        last = step == sampler.n_batches - 1
        assert visits.total() - len(visits) <= (sampler.n_padding if last else 0)


def test_a_new_epoch_has_a_new_order():
    sampler = TripletSampler(random_train(0), 1000, 0)
    orders = [observed(sampler.batch(epoch, 0)) for epoch in range(3)]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2])


def test_the_order_is_uniform():
    train = csr([[1, 1, 1, 1, 0]])
    sampler = TripletSampler(train, 1, 3)
    first = Counter(int(sampler.batch(epoch, 0).pos_item[0]) for epoch in range(4000))
    assert chisquare([first[i] for i in range(4)]).pvalue > UNLIKELY


# User sampling.


@given(trains(), st.integers(1, 4), st.integers(1, 3), st.integers(0, 50))
@settings(max_examples=150, deadline=None)
def test_users_of_a_global_batch_are_distinct_where_there_are_enough(train, size, world, step):
    sampler = TripletSampler(train, size, 2, "user", world_size=world)
    batches = [sampler.batch(0, step, rank) for rank in range(world)]
    users = np.concatenate([b.user for b in batches])
    assert all(len(b.user) == size for b in batches)
    active = set(np.flatnonzero(np.diff(train.indptr)).tolist())
    assert set(users.tolist()) <= active
    if len(active) >= size * world:
        assert len(set(users.tolist())) == size * world
    known = set(pairs(train))
    assert all(pair in known for batch in batches for pair in observed(batch))


def test_user_sampling_draws_users_and_their_items_uniformly():
    dense = np.zeros((6, 12), dtype=bool)
    dense[1, :8] = dense[2, 3:5] = dense[4, [0, 5, 9]] = True
    sampler = TripletSampler(csr(dense), 2, 1, "user")
    assert sampler.n_padding == 0
    draws = Counter()
    for step in range(6000):
        draws.update(observed(sampler.batch(0, step)))
    users = Counter()
    for (user, _), n in draws.items():
        users[user] += n
    assert sorted(users) == [1, 2, 4], "users without train items are never drawn"
    assert chisquare([users[u] for u in (1, 2, 4)]).pvalue > UNLIKELY
    for user in (1, 2, 4):
        counts = [draws[user, int(i)] for i in np.flatnonzero(dense[user])]
        assert chisquare(counts).pvalue > UNLIKELY


@pytest.mark.parametrize("sampling", ["edge", "user"])
def test_users_without_train_items_are_never_drawn(sampling):
    train = random_train(4)
    sampler = TripletSampler(train, 8, 0, sampling)
    drawn = {
        int(u) for e in range(3) for s in range(sampler.n_batches) for u in sampler.batch(e, s).user
    }
    assert drawn == set(np.flatnonzero(np.diff(train.indptr)).tolist())


@pytest.mark.parametrize("sampling", ["edge", "user"])
@pytest.mark.parametrize(
    ("size", "world", "expected"), [(1, 1, 10), (4, 1, 3), (3, 2, 2), (99, 3, 1)]
)
def test_steps_an_epoch(sampling, size, world, expected):
    train = csr(np.arange(20).reshape(2, 10) % 2)
    assert TripletSampler(train, size, 0, sampling, world_size=world).n_batches == expected


# Negatives.


@given(trains(), st.sampled_from(["edge", "user"]))
@settings(max_examples=150, deadline=None)
def test_negatives_are_items_the_user_has_not_met_in_train(train, sampling):
    sampler = TripletSampler(train, 5, 0, sampling)
    known = set(pairs(train))
    for step in range(sampler.n_batches):
        batch = sampler.batch(0, step)
        assert ((batch.neg_item >= 0) & (batch.neg_item < train.shape[1])).all()
        for pair in zip(batch.user.tolist(), batch.neg_item.tolist(), strict=True):
            assert pair not in known


@given(trains(), st.sampled_from(["edge", "user"]), st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_catalogues_too_large_to_mark_each_pair_give_the_same_batches(train, sampling, n):
    def batches():
        sampler = TripletSampler(train, 5, 0, sampling, n_negatives=n)
        return [sampler.batch(1, step) for step in range(sampler.n_batches)]

    marked = batches()
    with mock.patch.object(triplets, "_MOST_MARKED", 0):
        searched = batches()
    for ours, other in zip(marked, searched, strict=True):
        for name, value in vars(ours).items():
            np.testing.assert_array_equal(value, vars(other)[name])


def test_negatives_are_uniform_over_the_rest():
    dense = np.zeros((3, 10), dtype=bool)
    dense[0, [0, 1, 2, 8]] = dense[1, [9]] = dense[2, :8] = True
    sampler = TripletSampler(csr(dense), 13, 21)
    draws = np.zeros((3, 10), dtype=int)
    for epoch in range(3000):
        batch = sampler.batch(epoch, 0)
        np.add.at(draws, (batch.user, batch.neg_item), 1)
    assert draws[dense].sum() == 0
    for user in range(3):
        assert chisquare(draws[user][~dense[user]]).pvalue > UNLIKELY


def test_negatives_of_a_user_who_has_met_nearly_everything_are_uniform_over_the_rest():
    dense = np.ones((1, 5000), dtype=bool)
    left = [7, 2500, 4999]
    dense[0, left] = False
    batch = TripletSampler(csr(dense), 600, 3).batch(0, 0)
    found, draws = np.unique(batch.neg_item, return_counts=True)
    assert found.tolist() == left
    assert chisquare(draws).pvalue > UNLIKELY


def test_negatives_of_a_batch_are_independent():
    sampler = TripletSampler(csr(np.eye(2, 6)), 2, 0)
    draws = Counter()
    for epoch in range(3000):
        batch = sampler.batch(epoch, 0)
        draws[tuple(batch.neg_item[np.argsort(batch.user)].tolist())] += 1
    pairs = [(a, b) for a in (1, 2, 3, 4, 5) for b in (0, 2, 3, 4, 5)]
    assert draws.total() == sum(draws[pair] for pair in pairs)
    assert chisquare([draws[pair] for pair in pairs]).pvalue > UNLIKELY


@given(
    trains(),
    st.integers(2, 6),
    st.integers(1, 3),
    st.floats(0, 1),
    st.sampled_from(["edge", "user"]),
    st.integers(0, 10**6),
)
@settings(max_examples=150, deadline=None)
def test_further_negatives_change_nothing_else_and_are_unmet(train, n, world, rate, sampling, seed):
    arguments = (train, 5, seed, sampling, some_edges(train, seed, n=8), rate, world)
    one, many = TripletSampler(*arguments), TripletSampler(*arguments, n_negatives=n)
    again = TripletSampler(*arguments, n_negatives=n)
    known = set(pairs(train))
    for step in range(one.n_batches):
        for rank in range(world):
            batch = many.batch(1, step, rank)
            assert equal(batch, one.batch(1, step, rank))
            assert batch.neg_items.shape == (len(batch.user), n)
            assert batch.neg_items.dtype == np.int64
            assert np.array_equal(batch.neg_items[:, 0], batch.neg_item)
            further = batch.neg_items[:, 1:]
            assert ((further >= 0) & (further < train.shape[1])).all()
            rows = zip(batch.user.tolist(), further.tolist(), strict=True)
            assert not any((user, item) in known for user, row in rows for item in row)
            assert np.array_equal(again.batch(1, step, rank).neg_items, batch.neg_items)


def test_one_negative_is_a_plain_batch():
    batch = TripletSampler(random_train(0), 16, 0).batch(0, 0)
    assert not isinstance(batch, ManyNegativesBatch)


def test_each_of_many_negatives_is_uniform_and_drawn_by_itself():
    dense = np.zeros((2, 7), dtype=bool)
    dense[0, [0, 6]] = dense[1, 1:5] = True
    sampler = TripletSampler(csr(dense), 6, 4, n_negatives=3)
    columns, joint = np.zeros((2, 3, 7), dtype=int), np.zeros((7, 7), dtype=int)
    for epoch in range(2000):
        batch = sampler.batch(epoch, 0)
        for column in range(3):
            np.add.at(columns, (batch.user, column, batch.neg_items[:, column]), 1)
        last = batch.neg_items[batch.user == 1][:, 1:]
        np.add.at(joint, (last[:, 0], last[:, 1]), 1)
    for user in range(2):
        assert columns[user][:, dense[user]].sum() == 0
        for column in range(3):
            assert chisquare(columns[user, column][~dense[user]]).pvalue > UNLIKELY
    free = np.flatnonzero(~dense[1])
    assert chisquare(joint[np.ix_(free, free)].ravel()).pvalue > UNLIKELY


def test_columns_in_any_order_give_the_same_sampler():
    train = random_train(2)
    shuffled = train.copy()
    rng = np.random.default_rng(0)
    for start, stop in zip(train.indptr, train.indptr[1:], strict=False):
        shuffled.indices[start:stop] = rng.permutation(train.indices[start:stop])
    shuffled.has_sorted_indices = False
    assert not np.array_equal(shuffled.indices, train.indices)
    a, b = TripletSampler(train, 64, 0), TripletSampler(shuffled, 64, 0)
    assert all(equal(a.batch(0, step), b.batch(0, step)) for step in range(a.n_batches))


# LLM triplets.


@given(
    trains(),
    st.integers(1, 12),
    st.floats(0, 1),
    st.sampled_from(["edge", "user"]),
    st.integers(0, 10**6),
)
@settings(max_examples=200, deadline=None)
def test_llm_triplets_are_given_rows_of_distinct_users_of_the_batch(
    train, size, rate, sampling, seed
):
    edges = some_edges(train, seed, n=8)
    sampler = TripletSampler(train, size, seed, sampling, edges, rate)
    rows = {tuple(row) for row in edges.T.tolist()}
    for step in range(sampler.n_batches):
        batch = sampler.batch(0, step)
        n_observed = int((batch.source == OBSERVED).sum())
        assert (batch.source[:n_observed] == OBSERVED).all()
        assert (batch.source[n_observed:] == LLM).all()
        llm = np.stack([batch.user, batch.pos_item, batch.neg_item])[:, n_observed:]
        assert llm.shape[1] <= int(rate * n_observed)
        assert {tuple(row) for row in llm.T.tolist()} <= rows
        assert len(set(llm[0].tolist())) == llm.shape[1]
        assert set(llm[0].tolist()) <= set(batch.user[:n_observed].tolist())


def test_rate_one_brings_every_user_of_the_batch_that_has_an_edge():
    train = random_train(3)
    edges = some_edges(train, 0, n=25)
    sampler = TripletSampler(train, 20, 0, "user", edges, 1.0)
    with_edges = set(edges[0].tolist())
    for step in range(sampler.n_batches):
        batch = sampler.batch(0, step)
        llm = batch.user[batch.source == LLM].tolist()
        expected = with_edges.intersection(batch.user[batch.source == OBSERVED].tolist())
        assert sorted(llm) == sorted(expected)


@pytest.mark.parametrize(("rate", "size", "expected"), [(0.1, 30, 3), (0.1, 9, 0), (0.5, 7, 3)])
def test_a_full_augmentation_brings_exactly_the_rate(rate, size, expected):
    train = random_train(5, share=0.6)
    n_users = train.shape[0]
    edges = np.stack([np.arange(n_users), np.zeros(n_users, int), np.ones(n_users, int)])
    sampler = TripletSampler(train, size, 0, "user", edges, rate)
    assert int((sampler.batch(0, 0).source == LLM).sum()) == expected


def test_llm_users_and_their_rows_are_drawn_uniformly():
    train = csr(np.eye(4, 9))
    edges = np.array([[0, 1, 1, 1, 2, 3], [5, 4, 5, 6, 7, 8], [8, 7, 8, 4, 5, 6]])
    sampler = TripletSampler(train, 4, 1, "user", edges, 0.5)
    users, rows = Counter(), Counter()
    for step in range(4000):
        batch = sampler.batch(0, step)
        llm = batch.source == LLM
        users.update(batch.user[llm].tolist())
        rows.update(batch.pos_item[llm & (batch.user == 1)].tolist())
    assert users.total() == 8000
    assert chisquare([users[u] for u in range(4)]).pvalue > UNLIKELY
    assert chisquare([rows[i] for i in (4, 5, 6)]).pvalue > UNLIKELY


def test_llm_triplets_leave_the_observed_ones_as_they_are():
    train = random_train(6)
    without = TripletSampler(train, 16, 0)
    with_llm = TripletSampler(train, 16, 0, llm_edges=some_edges(train, 0), llm_edge_rate=0.5)
    for step in range(without.n_batches):
        a, b = without.batch(0, step), with_llm.batch(0, step)
        rows = b.source == OBSERVED
        assert np.array_equal(a.user, b.user[rows])
        assert np.array_equal(a.pos_item, b.pos_item[rows])
        assert np.array_equal(a.neg_item, b.neg_item[rows])


@pytest.mark.parametrize("edges", [None, some_edges(random_train(0), 0)])
def test_rate_zero_brings_none(edges):
    sampler = TripletSampler(random_train(0), 16, 0, llm_edges=edges, llm_edge_rate=0.0)
    for step in range(sampler.n_batches):
        assert (sampler.batch(0, step).source == OBSERVED).all()


# What is refused.


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan"), float("inf")])
def test_rate_outside_the_unit_interval_is_an_error(rate):
    train = random_train(0)
    with pytest.raises(ConfigError, match=r"w3.*\[0, 1\]"):
        TripletSampler(train, 4, 0, llm_edges=some_edges(train, 0), llm_edge_rate=rate)


def test_a_rate_without_edges_is_an_error():
    with pytest.raises(AugmentationError, match="no LLM edges"):
        TripletSampler(random_train(0), 4, 0, llm_edge_rate=0.1)


@pytest.mark.parametrize(
    "arguments",
    [{"batch_size": 0}, {"world_size": 0}, {"sampling": "random"}, {"n_negatives": 0}],
)
def test_settings_out_of_range_are_errors(arguments):
    with pytest.raises(ConfigError, match=r"batch_size|sampling|n_negatives"):
        TripletSampler(random_train(0), **({"batch_size": 4, "seed": 0} | arguments))


def test_a_user_with_every_item_is_an_error():
    with pytest.raises(DatasetError, match="user 1 has interacted with all 3 items"):
        TripletSampler(csr([[1, 0, 1], [1, 1, 1]]), 4, 0)


def test_an_empty_train_split_is_an_error():
    with pytest.raises(DatasetError, match="empty"):
        TripletSampler(csr(np.zeros((2, 3))), 4, 0)
