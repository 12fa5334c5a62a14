"""Entries cut out of sparse matrices, and operators that share one pattern."""

from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings

from llmrec_pl.sparse_operator import SparseOperator, TransposedOperator


@st.composite
def matrices(draw):
    shape = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    dense = random.normal(size=shape) * (random.random(shape) < draw(st.floats(0, 1)))
    return dense.astype(np.float32)


def some_rows(data, n):
    return torch.tensor(data.draw(st.lists(st.integers(0, n - 1), max_size=9)), dtype=torch.int64)


def dense_of(entries, n_columns):
    bounds = list(pairwise(entries.indptr.tolist()))
    dense = torch.zeros(len(bounds), n_columns)
    for row, (start, stop) in enumerate(bounds):
        for entry in range(start, stop):
            dense[row, entries.columns[entry]] += entries.weight[entry]
    return dense


@settings(max_examples=40)
@given(matrices(), st.data())
def test_entries_of_rows_are_those_of_the_matrix(dense, data):
    operator, exact = SparseOperator(sp.csr_array(dense)), torch.from_numpy(dense)
    rows, columns = some_rows(data, dense.shape[0]), some_rows(data, dense.shape[1])
    cut, turned = operator.entries(rows), operator.entries(columns, transpose=True)
    torch.testing.assert_close(dense_of(cut, dense.shape[1]), exact[rows], rtol=0, atol=0)
    torch.testing.assert_close(dense_of(turned, dense.shape[0]), exact.T[columns], rtol=0, atol=0)
    assert operator.n_entries(rows) == len(cut.columns)
    assert operator.n_entries() == np.count_nonzero(dense)
    np.testing.assert_array_equal(operator.matrix().toarray(), dense)


@pytest.mark.parametrize("method", ["flipped", "_flipped_by_sorting"])
@settings(max_examples=40)
@given(matrices(), st.data())
def test_flipped_entries_are_those_of_the_transpose(method, dense, data):
    rows = some_rows(data, dense.shape[0])
    cut = SparseOperator(sp.csr_array(dense)).entries(rows)
    flipped = getattr(cut, method)(dense.shape[1])
    expected = torch.from_numpy(dense)[rows].T
    torch.testing.assert_close(dense_of(flipped, len(rows)), expected, rtol=0, atol=0)


@settings(max_examples=40)
@given(matrices())
def test_unsorted_matrices_give_the_same_operator(dense):
    matrix = sp.csr_array(dense)
    shuffled = matrix.copy()
    for start, stop in pairwise(matrix.indptr):
        shuffled.indices[start:stop] = matrix.indices[start:stop][::-1]
        shuffled.data[start:stop] = matrix.data[start:stop][::-1]
    shuffled.has_sorted_indices = False
    pairs = zip(
        SparseOperator(matrix).named_buffers(),
        SparseOperator(shuffled).named_buffers(),
        strict=True,
    )
    for (name, a), (_, b) in pairs:
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("own", [False, True])
@settings(max_examples=40)
@given(matrices(), st.integers(0, 2**16))
def test_a_transposed_operator_multiplies_both_ways(own, dense, seed):
    random = np.random.default_rng(seed)
    matrix = dense.T.copy()
    if own:
        matrix[matrix != 0] = random.normal(size=np.count_nonzero(matrix)) + 3
    weights = sp.csr_array(matrix) if own else None
    operator = TransposedOperator(SparseOperator(sp.csr_array(dense)), weights).double()
    assert operator.shape == matrix.shape
    exact = torch.from_numpy(matrix).double()
    x = torch.from_numpy(random.normal(size=(dense.shape[0], 2))).requires_grad_()
    twin = x.detach().clone().requires_grad_()
    torch.testing.assert_close(operator(x), exact @ twin)
    operator(x).square().sum().backward()
    (exact @ twin).square().sum().backward()
    torch.testing.assert_close(x.grad, twin.grad)
    np.testing.assert_array_equal(operator.matrix().toarray(), matrix)


def test_a_transposed_operator_keeps_no_copy_after_a_conversion():
    operator = SparseOperator(sp.csr_array(np.eye(3)))
    pair = torch.nn.ModuleList([operator, TransposedOperator(operator)]).double()
    assert len({b.data_ptr() for b in pair.buffers()}) == 6
    assert all(b.dtype == torch.float64 for n, b in pair.named_buffers() if "weight" in n)


def test_rows_of_half_precision_features_are_summed_in_float32():
    operator = SparseOperator(sp.csr_array(np.ones((1, 2))))
    x = torch.tensor([[1.0], [2**-11]], dtype=torch.float16)
    assert operator.entries(torch.tensor([0])).gather(x).item() == 1 + 2**-11


@pytest.mark.parametrize("n_rows", [0, 1, 127, 128, 129, 256, 500])
def test_many_rows_of_half_precision_features_are_summed_as_wide_ones_are(n_rows):
    random = np.random.default_rng(n_rows)
    dense = random.normal(size=(500, 60)) * (random.random((500, 60)) < 0.1)
    operator = SparseOperator(sp.csr_array(dense.astype(np.float32)))
    x = torch.from_numpy(random.normal(size=(60, 3))).half()
    rows = torch.from_numpy(random.integers(0, 500, size=n_rows))
    entries = operator.entries(rows)
    torch.testing.assert_close(entries.gather(x), entries.gather(x.float()), rtol=0, atol=0)
