"""Propagation over the rows that a batch needs equals the full form, values and gradients."""

from contextlib import contextmanager

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from llmrec_pl import frontier
from llmrec_pl.graph import BipartiteGraph
from llmrec_pl.models.base import Representations
from llmrec_pl.models.ngcf import NGCF, NGCFLayer

NEVER, ALWAYS = 2.0, 0.0
"""Shares of the entries from which on a side is computed for all nodes."""


@contextmanager
def whole_from(share):
    before = frontier.SHARE_OF_WHOLE
    frontier.SHARE_OF_WHOLE = share
    try:
        yield
    finally:
        frontier.SHARE_OF_WHOLE = before


@st.composite
def graphs(draw):
    """Some nodes have no edge; there may be none at all."""
    n_users, n_items = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    dense = random.random((n_users, n_items)) < draw(st.sampled_from([0.0, 0.1, 0.3, 0.8]))
    norm = draw(st.sampled_from(["symmetric", "row", "mean"]))
    return BipartiteGraph(np.stack(np.nonzero(dense)), n_users, n_items, norm).double(), dense, norm


def ids(data, n):
    """Repeats, any order, or none."""
    return torch.tensor(data.draw(st.lists(st.integers(0, n - 1), max_size=6)), dtype=torch.int64)


def tables(dense, seed):
    torch.manual_seed(seed)
    return [torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in dense.shape]


def dense_mean(dense, norm, user, item, n_layers):
    """The mean of layers by dense matrices, whose entries the graph keeps in float32."""
    r = torch.from_numpy(dense.astype(np.float64))
    row, column = r.sum(1).clamp(min=1)[:, None], r.sum(0).clamp(min=1)[None, :]
    both = {
        "symmetric": (r * (row * column) ** -0.5,) * 2,
        "row": (r * row**-0.5, r * column**-0.5),
        "mean": (r / row, r / column),
    }[norm]
    to_user, to_item = both[0].float().double(), both[1].T.float().double()
    users, items = [user], [item]
    for _ in range(n_layers):
        users, items = [*users, to_user @ items[-1]], [*items, to_item @ users[-1]]
    return torch.stack(users).mean(0), torch.stack(items).mean(0)


@pytest.mark.parametrize("share", [ALWAYS, frontier.SHARE_OF_WHOLE, 0.7, NEVER])
@settings(max_examples=40)
@given(graphs(), st.integers(0, 4), st.data())
def test_mean_of_layers_equals_dense_matrices(share, graph, n_layers, data):
    graph, dense, norm = graph
    users, items = ids(data, dense.shape[0]), ids(data, dense.shape[1])
    tables_, twins = tables(dense, 0), tables(dense, 0)
    with whole_from(share):
        found = graph.mean_of_layers_at(*tables_, n_layers, users, items)
    whole = dense_mean(dense, norm, *twins, n_layers)
    expected = whole[0][users], whole[1][items]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
    weight = [torch.randn_like(x) for x in expected]
    for parts in (found, expected):
        sum((x * w).sum() for x, w in zip(parts, weight, strict=True)).backward()
    for a, b in zip(tables_, twins, strict=True):
        assert not a.grad.is_sparse
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("share", [frontier.SHARE_OF_WHOLE, NEVER])
@settings(max_examples=25)
@given(graphs(), st.integers(1, 3), st.data())
def test_ngcf_rows_equal_its_whole(share, graph, n_layers, data):
    graph, dense, _ = graph
    users, items = ids(data, dense.shape[0]), ids(data, dense.shape[1])
    torch.manual_seed(1)
    model = NGCF(n_layers=n_layers, embedding_dim=3, message_dropout=0.0)
    model.graph = graph
    model.user_embedding = torch.nn.Embedding(dense.shape[0], 3)
    model.item_embedding = torch.nn.Embedding(dense.shape[1], 3)
    model.layers = torch.nn.ModuleList(NGCFLayer(3, 0.2) for _ in range(n_layers))
    model.double().train()
    with whole_from(share):
        found = model.encode_rows(users, items)
    whole = model.encode()
    expected = Representations(whole.user[users], whole.item[items])
    parameters = list(model.parameters())
    gradients = []
    for rows in (found, expected):
        torch.testing.assert_close(rows.user, expected.user, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(rows.item, expected.item, rtol=1e-9, atol=1e-12)
        cost = rows.user.sin().sum() + rows.item.cos().sum()
        gradients.append(torch.autograd.grad(cost, parameters, allow_unused=True))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def path_graph(n):
    """Users and items in one line: user k likes items k and k + 1."""
    user = np.repeat(np.arange(n), 2)
    item = user + np.tile([0, 1], n)
    return BipartiteGraph(np.stack([user, item]), n, n + 1)


def test_only_what_is_within_reach_is_computed():
    graph, n_layers = path_graph(1000), 3
    rows = graph.frontier(torch.tensor([500]), torch.tensor([], dtype=torch.int64), n_layers)
    assert rows.n_whole == 0
    user, item = torch.ones(1000, 2), torch.ones(1001, 2)
    sizes = []
    for layer in range(n_layers):
        user, item = rows.propagate(layer, user, item)
        sizes.append((len(user), len(item)))
    # Towards user 500 go items 500 and 501, users 499 to 501, items 499 to 502.
    assert sizes == [(3, 2), (1, 2), (1, 0)]


def test_far_nodes_have_no_say_and_get_no_gradient():
    graph = path_graph(50)
    user, item = torch.randn(50, 2, requires_grad=True), torch.randn(51, 2)
    far = user.detach().clone()
    far[:20] = torch.nan
    rows = graph.mean_of_layers_at(far, item, 2, torch.tensor([40]), torch.tensor([41]))
    assert all(x.isfinite().all() for x in rows)
    users, items = graph.mean_of_layers_at(user, item, 2, torch.tensor([40]), torch.tensor([41]))
    (users.sum() + items.sum()).backward()
    assert set(user.grad.abs().sum(1).nonzero().flatten().tolist()) == {39, 40, 41}


def test_a_batch_that_reaches_most_of_the_graph_runs_over_all_of_it_and_says_so_once(caplog):
    graph = path_graph(10)
    ids = torch.arange(10)
    with caplog.at_level("INFO", logger="llmrec_pl"):
        assert graph.frontier(ids[:1], ids[:1], 1).n_whole == 0
        assert not caplog.records
        assert graph.frontier(ids[:2], ids, 2).n_whole == 3
        assert graph.frontier(ids, ids, 2).n_whole == 4
    assert [r.message for r in caplog.records] == [
        "batches reach so much of the graph that 3 of 4 products run over all of it"
    ]
