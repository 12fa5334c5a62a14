"""Normalisations and sparse products against dense float64 loops."""

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings

from llmrec_pl.errors import ConfigError
from llmrec_pl.graph import (
    BipartiteGraph,
    SparseOperator,
    WeightedBipartiteGraph,
    normalise,
    segment_softmax,
    weighted_sum,
)


def naive(dense, norm):
    out = np.zeros(dense.shape)
    for r in range(dense.shape[0]):
        for c in range(dense.shape[1]):
            if not dense[r, c]:
                continue
            row, column = dense[r].sum(), dense[:, c].sum()
            out[r, c] = {
                "row": row**-0.5,
                "mean": 1 / row,
                "symmetric": (row * column) ** -0.5,
            }[norm]
    return out


@st.composite
def adjacency(draw):
    shape = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    bits = draw(st.lists(st.booleans(), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
    return np.array(bits).reshape(shape)


@given(adjacency(), st.sampled_from(["row", "mean", "symmetric"]))
def test_normalise_equals_a_loop_over_entries(dense, norm):
    np.testing.assert_allclose(normalise(sp.csr_array(dense), norm).toarray(), naive(dense, norm))


def test_unknown_norm_lists_the_known():
    with pytest.raises(ConfigError, match="symmetric"):
        normalise(sp.csr_array(np.ones((2, 2))), "colum")


@settings(deadline=None, max_examples=60)
@given(adjacency(), st.integers(0, 2**16), st.data())
def test_rows_and_columns_of_a_product_equal_the_dense_ones(dense, seed, data):
    random = np.random.default_rng(seed)
    matrix = (dense * random.normal(size=dense.shape)).astype(np.float32).astype(np.float64)
    operator = SparseOperator(sp.csr_array(matrix)).double()
    exact = torch.from_numpy(matrix)
    x = torch.from_numpy(random.normal(size=(dense.shape[1], 3))).requires_grad_()
    twin = x.detach().clone().requires_grad_()
    some = st.lists(st.integers(0, dense.shape[0] - 1), max_size=12)
    rows = torch.tensor(data.draw(some), dtype=torch.int64)
    weight = torch.from_numpy(random.normal(size=(len(rows), 3)))
    found, expected = operator.rows(x, rows), (exact @ twin)[rows]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(x.grad, twin.grad, rtol=1e-12, atol=1e-12)

    columns = torch.tensor(
        data.draw(st.lists(st.integers(0, dense.shape[1] - 1), max_size=12)), dtype=torch.int64
    )
    y = torch.from_numpy(random.normal(size=(len(columns), 3))).requires_grad_()
    twin = y.detach().clone().requires_grad_()
    weight = torch.from_numpy(random.normal(size=(dense.shape[0], 3)))
    found, expected = operator.columns(y, columns), exact[:, columns] @ twin
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(y.grad, twin.grad, rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(adjacency(), st.integers(0, 2**16))
def test_product_and_gradient_equal_the_dense_ones(dense, seed):
    random = np.random.default_rng(seed)
    matrix = dense * random.normal(size=dense.shape)
    operator = SparseOperator(sp.csr_array(matrix)).double()
    exact = torch.from_numpy(matrix.astype(np.float32)).double()
    x = torch.from_numpy(random.normal(size=(dense.shape[1], 3))).requires_grad_()
    y = x.detach().clone().requires_grad_()
    weight = torch.from_numpy(random.normal(size=(dense.shape[0], 3)))
    (operator(x) * weight).sum().backward()
    ((exact @ y) * weight).sum().backward()
    torch.testing.assert_close(operator(x), exact @ y)
    torch.testing.assert_close(x.grad, y.grad)


def test_autocast_leaves_the_product_in_float32():
    operator = SparseOperator(sp.csr_array(np.eye(3)))
    x = torch.randn(3, 2, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        product = operator(x.bfloat16())
    assert product.dtype == torch.float32
    product.sum().backward()
    assert x.grad.dtype == torch.float32


def test_buffers_are_dense_and_not_saved():
    graph = BipartiteGraph(np.array([[0, 1], [1, 0]]), 2, 2)
    assert graph.state_dict() == {}
    assert not any(b.is_sparse or b.layout == torch.sparse_csr for b in graph.buffers())


def test_propagate_is_one_layer_of_the_joint_graph():
    random = np.random.default_rng(0)
    dense = random.random((4, 6)) < 0.5
    graph = BipartiteGraph(np.stack(np.nonzero(dense)), 4, 6, "symmetric").double()
    joint = np.zeros((10, 10))
    joint[:4, 4:], joint[4:, :4] = dense, dense.T
    user, item = torch.randn(4, 3).double(), torch.randn(6, 3).double()
    expected = torch.from_numpy(naive(joint, "symmetric")) @ torch.cat([user, item])
    found = torch.cat(graph.propagate(user, item))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(adjacency(), st.integers(0, 2**16))
def test_learned_weights_give_dense_products_and_gradients_both_ways(dense, seed):
    random = np.random.default_rng(seed)
    edges = np.stack(np.nonzero(dense))
    shuffled = edges[:, random.permutation(edges.shape[1])]
    graph = WeightedBipartiteGraph(shuffled, *dense.shape)
    assert torch.equal(torch.stack([graph.edge_user, graph.edge_item]), torch.from_numpy(edges))
    weight = torch.from_numpy(random.normal(size=edges.shape[1])).requires_grad_()
    user = torch.from_numpy(random.normal(size=(dense.shape[0], 3))).requires_grad_()
    item = torch.from_numpy(random.normal(size=(dense.shape[1], 3))).requires_grad_()
    matrix = torch.zeros(dense.shape, dtype=torch.float64).index_put(
        tuple(torch.from_numpy(edges)), weight
    )
    found = graph.to_user(item, weight), graph.to_item(user, weight)
    expected = matrix @ item, matrix.T @ user
    inputs = (weight, user, item)
    cost = sum(x.square().sum() for x in found), sum(x.square().sum() for x in expected)
    torch.testing.assert_close(found, expected)
    for a, b in zip(*(torch.autograd.grad(c, inputs) for c in cost), strict=True):
        torch.testing.assert_close(a, b)


def test_neighbour_sums_take_a_rectangle_of_columns():
    columns = torch.tensor([[0, 2], [1, 1], [2, 0]])
    weight = torch.tensor([[1.0, 2.0], [0.5, 0.5], [0.0, -1.0]])
    x = torch.arange(6.0).reshape(3, 2)
    expected = torch.stack([x[0] + 2 * x[2], x[1], -x[0]])
    torch.testing.assert_close(weighted_sum(columns, weight, x), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weighted_sums_stay_in_full_precision_under_autocast(dtype):
    columns, weight = torch.tensor([[0, 1]]), torch.tensor([[1.0, 1.0]], requires_grad=True)
    x = torch.tensor([[1.0], [1e-3]], requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        total = weighted_sum(columns, weight, x)
    assert total.dtype == torch.float32
    assert float(total.detach()) == pytest.approx(1.001, abs=1e-7)
    total.sum().backward()
    assert weight.grad.dtype == x.grad.dtype == torch.float32


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 4), st.floats(-300, 300)), min_size=1, max_size=20))
def test_segment_softmax_equals_a_softmax_of_each_segment(pairs):
    segment = torch.tensor([s for s, _ in pairs])
    score = torch.tensor([x for _, x in pairs], dtype=torch.float64, requires_grad=True)
    found = segment_softmax(score, segment, 5)
    expected = torch.zeros_like(score)
    for s in range(5):
        inside = segment == s
        expected = expected.masked_scatter(inside, score[inside].softmax(0))
    torch.testing.assert_close(found, expected)
    mark = torch.arange(len(pairs), dtype=torch.float64)
    gradients = [torch.autograd.grad((x * mark).sum(), score)[0] for x in (found, expected)]
    torch.testing.assert_close(*gradients)


@settings(deadline=None, max_examples=40)
@given(adjacency(), st.integers(0, 2**16))
def test_edge_scores_and_their_gradients_equal_those_of_the_dense_product(dense, seed):
    random = np.random.default_rng(seed)
    graph = WeightedBipartiteGraph(np.stack(np.nonzero(dense)), *dense.shape)
    user = torch.from_numpy(random.normal(size=(dense.shape[0], 3))).requires_grad_()
    item = torch.from_numpy(random.normal(size=(dense.shape[1], 3))).requires_grad_()
    expected = (user @ item.T)[torch.from_numpy(dense)]
    found = graph.edge_scores(user, item)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(x.square().sum(), (user, item)) for x in (found, expected)]
    torch.testing.assert_close(*gradients)
