"""Reading a canonical folder: the fingerprint's definition, and edges in any order."""

import dataclasses
import hashlib
import json

import numpy as np
import polars as pl
import pytest
from canonical_folder import write_folder

from llmrec_pl.data import dataset as module
from llmrec_pl.data.dataset import SPLITS, InteractionDataset, content_fingerprint


def tiny(n_users=5, n_items=7):
    random = np.random.default_rng(3)
    dense = random.random((3, n_users, n_items)) < 0.4
    parts = {split: np.stack(np.nonzero(part)) for split, part in zip(SPLITS, dense, strict=True)}
    return InteractionDataset.from_edges("tiny", n_users, n_items, **parts)


@pytest.mark.parametrize("at_once", [1, 2, 3, 1 << 20])
def test_the_fingerprint_is_over_whole_arrays_however_they_are_read(monkeypatch, at_once):
    monkeypatch.setattr(module, "_AT_ONCE", at_once)
    data, protocol = tiny(), {"split": "random", "größe": 1}
    plain = b"llmrec_pl data set v1\0"
    plain += json.dumps(protocol, sort_keys=True, ensure_ascii=False).encode()
    for ids in (data.user_ids, data.item_ids):
        plain += "\0".join(ids.tolist()).encode() + b"\1"
    for split in SPLITS:
        for array in (data.splits[split].indptr, data.splits[split].indices):
            plain += array.astype("<i8").tobytes()
    found = content_fingerprint(protocol, data.user_ids, data.item_ids, data.splits)
    assert found == hashlib.sha256(plain).hexdigest()


def test_edges_of_a_file_may_have_any_order(tmp_path):
    root = write_folder(tmp_path / "tiny")
    expected = InteractionDataset.load(root, open_test=True)
    file = root / "interactions.parquet"
    pl.read_parquet(file).sample(fraction=1.0, shuffle=True, seed=1).write_parquet(file)
    found = InteractionDataset.load(root, open_test=True)
    for split in SPLITS:
        np.testing.assert_array_equal(
            found.splits[split].toarray(), expected.splits[split].toarray()
        )


@pytest.mark.parametrize("extra", [None, np.array([[0, 4, 0], [6, 0, 6]])])
def test_graph_edges_are_distinct_sorted_pairs_of_train_and_further_ones(extra):
    data = dataclasses.replace(tiny(), extra_edges=extra)
    pairs = set(zip(*np.nonzero(data.train.toarray()), strict=True))
    pairs |= set() if extra is None else set(zip(*extra.tolist(), strict=True))
    edges = data.graph_edges()
    assert edges.dtype == np.int64
    assert list(zip(*edges.tolist(), strict=True)) == sorted(pairs)
