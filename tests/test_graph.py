"""Normalisations and sparse products against dense float64 loops."""

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings

from llmrec_pl.errors import ConfigError
from llmrec_pl.graph import BipartiteGraph, SparseOperator, normalise


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
