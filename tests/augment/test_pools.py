import json

import numpy as np
import polars as pl
import pytest

from augment.pools import load_pool
from llmrec_pl.errors import AugmentationError, ConfigError
from tests.augment.tiny_data import ITEMS, tiny

POOLS = {"u1": ["m4", "m5", "m6"], "u2": ["m7", "m6", "m1"], "u3": ["m1"], "u4": ["m10", "m3"]}


def write_pool(folder, dataset, pools=None, **said):
    """What `predict` leaves: lists by original id, and for which data."""
    rows = [
        (user, rank, item)
        for user, items in (pools or POOLS).items()
        for rank, item in enumerate(items, 1)
    ]
    rows.reverse()  # the order of rows must not matter
    folder.mkdir(exist_ok=True)
    frame = pl.DataFrame(rows, schema=["user_id", "rank", "item_id"], orient="row")
    frame.write_parquet(folder / "candidates.parquet")
    about = {"dataset_fingerprint": dataset.fingerprint, "model_fingerprint": "f00d", **said}
    (folder / "predictions.json").write_text(json.dumps(about))
    return str(folder / "candidates.parquet")


def named(pool, dataset):
    return {
        str(user): [str(dataset.item_ids[i]) for i in row if i >= 0]
        for user, row in zip(dataset.user_ids, pool.items, strict=True)
    }


# Files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("n", [2, 3])
def test_the_first_of_each_user_are_taken(tmp_path, turned, n):
    dataset = tiny(tmp_path / "d", turned=turned)
    pool = load_pool(write_pool(tmp_path, dataset), dataset, n)
    assert pool.items.shape == (4, n)
    assert named(pool, dataset) == {user: items[:n] for user, items in POOLS.items()}
    assert pool.model_fingerprint == "f00d"


def test_the_hash_is_of_the_content_in_original_ids(tmp_path):
    shas = []
    for turned in (False, True):
        dataset = tiny(tmp_path / f"d{turned}", turned=turned)
        shas.append(load_pool(write_pool(tmp_path, dataset), dataset, 3).sha256)
    assert shas[0] == shas[1]
    other = {**POOLS, "u1": ["m5", "m4", "m6"]}
    dataset = tiny(tmp_path / "d")
    assert load_pool(write_pool(tmp_path, dataset, other), dataset, 3).sha256 != shas[0]


def test_users_that_are_not_in_the_file_have_no_pool(tmp_path):
    dataset = tiny(tmp_path / "d")
    pool = load_pool(write_pool(tmp_path, dataset, {"u1": POOLS["u1"]}), dataset, 3)
    assert (pool.items[1:] == -1).all()


def test_a_pool_written_by_predict_is_read(tmp_path):
    pytest.importorskip("lightning")
    from llmrec_pl.evaluation.predictions import PredictionWriter

    dataset = tiny(tmp_path / "d")
    writer = PredictionWriter(k=3, n_candidates=3)
    writer.dataset = dataset
    users = np.arange(4)
    items = np.array([[5, 6, 7], [6, 7, 0], [0, 1, -1], [1, 2, 3]])
    lists = (users, items, np.zeros(items.shape, dtype=np.float32))

    class Model: ...

    class Trainer:
        ckpt_path = None

    writer._write(tmp_path / "predictions", [lists], [lists], Trainer(), Model(), "cafe")
    pool = load_pool(str(tmp_path / "predictions" / "candidates.parquet"), dataset, 3)
    assert pool.items.tolist() == items.tolist()
    assert pool.model_fingerprint == "cafe"


@pytest.mark.parametrize("source", ["", "no/such/candidates.parquet"])
def test_no_pool_names_the_command_that_makes_one(tmp_path, source):
    with pytest.raises(ConfigError, match="python -m llmrec_pl predict"):
        load_pool(source, tiny(tmp_path), 3)


@pytest.mark.parametrize(
    ("pools", "n", "said", "problem"),
    [
        (POOLS, 3, {"dataset_fingerprint": "0" * 64}, "made for data with fingerprint"),
        (POOLS, 4, {}, "--predictions.n_candidates 4"),
        ({**POOLS, "u9": ["m1"]}, 3, {}, "'u9'"),
        ({**POOLS, "u1": ["m4", "zz", "m6"]}, 3, {}, "'zz'"),
        ({**POOLS, "u1": ["m4", "m4", "m6"]}, 3, {}, "twice"),
        ({**POOLS, "u1": ["m4", "m5", "m3"]}, 3, {}, "'u1' items of their own train history"),
    ],
)
def test_pools_that_do_not_fit_are_refused(tmp_path, pools, n, said, problem):
    dataset = tiny(tmp_path / "d")
    with pytest.raises(AugmentationError, match=problem):
        load_pool(write_pool(tmp_path, dataset, pools, **said), dataset, n)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"dataset_fingerprint": "x"}'])
def test_a_damaged_record_beside_the_pool_is_refused(tmp_path, text):
    dataset = tiny(tmp_path / "d")
    source = write_pool(tmp_path, dataset)
    (tmp_path / "predictions.json").write_text(text)
    with pytest.raises(AugmentationError, match=r"predictions\.json"):
        load_pool(source, dataset, 3)


def test_a_missing_record_and_a_damaged_file_are_refused(tmp_path):
    dataset = tiny(tmp_path / "d")
    source = write_pool(tmp_path, dataset)
    (tmp_path / "candidates.parquet").write_bytes(b"PAR1 and more")
    with pytest.raises(AugmentationError, match="cannot read columns"):
        load_pool(source, dataset, 3)
    (tmp_path / "predictions.json").unlink()
    with pytest.raises(AugmentationError, match="is missing beside the pool"):
        load_pool(source, dataset, 3)


# Random ----------------------------------------------------------------------------------------


def many(root, n_items, turned=False, n_users=20, n_liked=5):
    items = {f"i{i:03}": (f"T{i}", None, None) for i in range(n_items)}
    users = [f"u{u}" for u in range(n_users)]
    liked = [(u, f"i{(7 * int(u[1:]) + j) % n_items:03}", j) for u in users for j in range(n_liked)]
    return tiny(root, items, liked, users, turned=turned, held_out=[])


@pytest.mark.parametrize(("n_items", "n"), [(300, 10), (30, 10), (12, 10), (6, 3)])
def test_random_pools_hold_distinct_items_outside_train(tmp_path, n_items, n):
    dataset = many(tmp_path, n_items)
    pool = load_pool("random", dataset, n)
    for user, row in enumerate(pool.items.tolist()):
        found = [i for i in row if i >= 0]
        liked = set(dataset.train[[user]].nonzero()[1].tolist())
        assert len(set(found)) == len(found) == min(n, n_items - len(liked))
        assert not set(found) & liked
    assert len({tuple(row) for row in pool.items.tolist()}) > 1
    assert pool.model_fingerprint == "random"


@pytest.mark.parametrize("n_items", [300, 20])
def test_random_pools_depend_on_names_and_seed_only(tmp_path, n_items):
    one, other = many(tmp_path / "a", n_items), many(tmp_path / "b", n_items, turned=True)
    pools = [load_pool("random", d, 5) for d in (one, other)]
    assert named(pools[0], one) == named(pools[1], other)
    assert pools[0].sha256 == pools[1].sha256
    assert load_pool("random", one, 5, seed=1).sha256 != pools[0].sha256
    more = many(tmp_path / "c", n_items, n_users=25)
    few = named(pools[0], one)
    assert {u: i for u, i in named(load_pool("random", more, 5), more).items() if u in few} == few


def test_random_pools_are_even(tmp_path):
    dataset = many(tmp_path, 100, n_users=400, n_liked=1)
    counts = np.bincount(load_pool("random", dataset, 5).items.ravel(), minlength=100)
    chi2 = ((counts - 20) ** 2 / 20).sum()
    assert chi2 < 161  # of 99 degrees of freedom, exceeded once in 10 000 draws


def test_all_items_are_used(tmp_path):
    assert len(ITEMS) == 8
    dataset = tiny(tmp_path)
    pool = load_pool("random", dataset, 8)
    assert sorted(named(pool, dataset)["u3"]) == sorted(ITEMS)
