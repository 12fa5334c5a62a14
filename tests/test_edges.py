"""Edge lists become the same matrix in any order, with repeats or without."""

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

from llmrec_pl.edges import edges_to_csr, is_sorted

PAIRS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), max_size=20)


@settings(max_examples=60)
@given(PAIRS, st.sampled_from([np.int32, np.int64]))
def test_the_matrix_holds_each_pair_once_in_sorted_rows(pairs, dtype):
    users, items = np.array(pairs, dtype=dtype).reshape(-1, 2).T
    matrix = edges_to_csr(users, items, 5, 6)
    dense = np.zeros((5, 6), dtype=bool)
    for user, item in pairs:
        dense[user, item] = True
    np.testing.assert_array_equal(matrix.toarray(), dense)
    assert matrix.dtype == bool
    assert matrix.indices.dtype == matrix.indptr.dtype == np.int32
    users, items = np.nonzero(dense)
    np.testing.assert_array_equal(matrix.indices, items)
    again = edges_to_csr(users, items, 5, 6)
    np.testing.assert_array_equal(again.indices, matrix.indices)
    np.testing.assert_array_equal(again.indptr, matrix.indptr)


@given(PAIRS)
def test_sorted_means_strictly_increasing(pairs):
    users, items = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    assert is_sorted(users, items) == (pairs == sorted(set(pairs)))


def test_the_matrix_does_not_share_memory_with_the_edges():
    users, items = np.array([0, 1], dtype=np.int32), np.array([1, 0], dtype=np.int32)
    matrix = edges_to_csr(users, items, 2, 2)
    items[:] = 0
    assert matrix.indices.tolist() == [1, 0]
