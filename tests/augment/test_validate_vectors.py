"""Embeddings; acceptance case 59."""

import base64
import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from augment.validate import embedding_verdicts
from tests.augment.replies import vectors_spec


def encoded(numbers):
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


def embedded(rows):
    data = [{"object": "embedding", "index": i, "embedding": v} for i, v in rows]
    return json.dumps({"data": data, "model": "m"}).encode()


@given(
    st.lists(
        st.lists(st.floats(-(2.0**90), 2.0**90, width=32), min_size=3, max_size=3).filter(any),
        min_size=1,
        max_size=6,
    ),
    st.randoms(use_true_random=False),
    st.booleans(),
)
@settings(max_examples=50)
def test_vectors_come_to_their_texts_in_any_order(vectors, random, base):
    rows = [(i, encoded(v) if base else v) for i, v in enumerate(vectors)]
    random.shuffle(rows)
    verdicts = embedding_verdicts(vectors_spec(), embedded(rows), len(vectors))
    for verdict, vector in zip(verdicts, vectors, strict=True):
        assert verdict.accepted
        assert verdict.value.dtype == np.float32
        assert verdict.value.tolist() == vector


@pytest.mark.parametrize(
    "bad",
    [
        [1.0, float("nan"), 2.0],
        [float("inf"), 1.0, 1.0],
        [1e300, 1.0, 1.0],
        [10**400, 1, 1],
        [0.0, 0.0, 0.0],
        [1.0, 2.0],
        [1.0, 2.0, 3.0, 4.0],
        [],
        ["1", "2", "3"],
        [[1.0], [2.0], [3.0]],
        [1.0, None, 2.0],
        [True, True, True],
        None,
        7,
        "not base64!",
        base64.b64encode(b"12345").decode(),
        encoded([1.0, float("nan"), 2.0]),
        encoded([0.0, 0.0, 0.0]),
        encoded([1.0, 2.0]),
    ],
)
def test_a_bad_vector_costs_its_own_text_only(bad):
    good = [1.0, 2.0, 3.0]
    raw = embedded([(0, encoded(good)), (1, bad), (2, good)])
    verdicts = embedding_verdicts(vectors_spec(), raw, 3)
    assert [v.code for v in verdicts] == ["accepted", "bad_vector", "accepted"]
    assert verdicts[1].value is None


def test_dimensions_asked_for_must_be_met():
    raw = embedded([(0, [1.0, 2.0]), (1, [3.0, 4.0])])
    assert all(v.accepted for v in embedding_verdicts(vectors_spec(dimensions=2), raw, 2))
    wrong = embedding_verdicts(vectors_spec(dimensions=3), raw, 2)
    assert [v.code for v in wrong] == ["bad_vector"] * 2


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "empty_body"),
        (b"<html>", "not_json"),
        (embedded([(0, [1.0])])[:-9], "bad_json"),
        (b"[]", "no_data"),
        (b'{"data": null}', "no_data"),
        (b'{"data": [1, 2]}', "no_data"),
        (b'{"data": [{"embedding": [1]}, {"embedding": [2]}]}', "wrong_count"),
        (embedded([(0, [1.0])]), "wrong_count"),
        (embedded([(0, [1.0]), (0, [2.0])]), "wrong_count"),
        (embedded([(1, [1.0]), (2, [2.0])]), "wrong_count"),
        (embedded([("0", [1.0]), (1, [2.0])]), "wrong_count"),
        (embedded([(0, [1.0]), (1, [2.0]), (1, [2.0])]), "wrong_count"),
    ],
)
def test_vectors_that_cannot_be_told_apart(raw, code):
    verdicts = embedding_verdicts(vectors_spec(), raw, 2)
    assert [(v.code, v.value) for v in verdicts] == [(code, None)] * 2
