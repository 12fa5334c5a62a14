from __future__ import annotations

import itertools

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec_pl.data import splits
from llmrec_pl.errors import DatasetError

PAIRS = st.sets(st.tuples(st.integers(0, 12), st.integers(0, 15)), min_size=1, max_size=80)
RATIOS = [(0.8, 0.1, 0.1), (0.7, 0.0, 0.3), (0.6, 0.2, 0.2), (0.05, 0.05, 0.9)]


def frame(pairs, **columns):
    pairs = sorted(pairs)
    return pl.DataFrame(
        {
            "user_id": [str(u) for u, _ in pairs],
            "item_id": [str(i) for _, i in pairs],
            **columns,
        },
        schema_overrides={"user_id": pl.String, "item_id": pl.String},
    )


def times(pairs):
    # many ties on purpose
    return [(7 * u + 3 * i) % 5 for u, i in sorted(pairs)]


def as_set(table, *columns):
    return set(table.select("user_id", "item_id", *columns).iter_rows())


@given(PAIRS, st.integers(1, 5), st.integers(1, 5))
def test_k_core_is_the_fixpoint_of_a_naive_loop(pairs, min_user, min_item):
    left = set(pairs)
    while True:
        users = {u for u, _ in left if sum(v == u for v, _ in left) >= min_user}
        items = {i for _, i in left if sum(j == i for _, j in left) >= min_item}
        smaller = {(u, i) for u, i in left if u in users and i in items}
        if smaller == left:
            break
        left = smaller
    found = splits.k_core(frame(pairs), min_user, min_item)
    assert as_set(found) == {(str(u), str(i)) for u, i in left}


SPLITTERS = {
    "random": lambda f: splits.split_random(f, (0.8, 0.1, 0.1), 3),
    "last": lambda f: splits.split_last_out(f, 3),
    "time": lambda f: splits.split_time(f, (0.8, 0.1, 0.1)),
    "carve": lambda f: splits.carve(f.with_columns(split=pl.lit("train")), 0.2, 0.2, 3),
}


@pytest.mark.parametrize("name", SPLITTERS)
@given(pairs=PAIRS, order=st.randoms(use_true_random=False))
def test_each_interaction_is_in_one_split_whatever_the_order_of_rows(name, pairs, order):
    table = frame(pairs, timestamp=times(pairs))
    rows = list(range(table.height))
    order.shuffle(rows)
    found = SPLITTERS[name](table)
    assert as_set(found) == as_set(table)
    assert found.height == table.height
    assert set(found["split"]) <= {"train", "val", "test"}
    assert as_set(SPLITTERS[name](table[rows]), "split") == as_set(found, "split")


@pytest.mark.parametrize("name", ["random", "last", "carve"])
@given(pairs=PAIRS)
def test_adding_a_user_does_not_change_the_others(name, pairs):
    more = pairs | {(99, 1), (99, 2), (99, 3)}
    before = SPLITTERS[name](frame(pairs, timestamp=times(pairs)))
    after = SPLITTERS[name](frame(more, timestamp=times(more)))
    assert as_set(after.filter(pl.col("user_id") != "99"), "split") == as_set(before, "split")


@pytest.mark.parametrize("ratios", RATIOS)
def test_ratio_counts_follow_the_documented_rules(ratios):
    n = np.arange(1, 400)
    train, val, test = splits.ratio_counts(n, ratios)
    assert np.array_equal(train + val + test, n)
    assert (train >= 1).all()
    big = n >= 60
    for share, counts in ((ratios[1], val), (ratios[2], test)):
        exact = np.array([int(share * 100) * k // 100 for k in n])
        assert np.array_equal(counts[big], exact[big])
        if share == 0:
            assert not counts.any()


def test_ratio_counts_of_short_histories():
    counts = splits.ratio_counts(np.array([1, 2, 3, 9, 10, 25]), (0.8, 0.1, 0.1))
    expected = [(1, 0, 0), (1, 0, 1), (1, 1, 1), (7, 1, 1), (8, 1, 1), (21, 2, 2)]
    assert counts.T.tolist() == [list(c) for c in expected]


@given(pairs=PAIRS, seed=st.integers(0, 5))
def test_random_split_has_the_promised_counts_for_each_user(pairs, seed):
    found = splits.split_random(frame(pairs), (0.6, 0.2, 0.2), seed)
    for (_,), rows in found.group_by("user_id"):
        expected = splits.ratio_counts(np.array([rows.height]), (0.6, 0.2, 0.2))[:, 0]
        counts = dict(rows["split"].value_counts().iter_rows())
        assert [counts.get(s, 0) for s in ("train", "val", "test")] == expected.tolist()


def test_seeds_give_different_splits_and_every_place_is_equally_likely():
    table = frame({(u, i) for u in range(300) for i in range(10)})
    found = [splits.split_random(table, (0.8, 0.1, 0.1), s) for s in (0, 1)]
    assert as_set(found[0], "split") != as_set(found[1], "split")
    tested = found[0].filter(pl.col("split") == "test")["item_id"].value_counts()["count"]
    # 300 users draw one of 10 items: 30 each, standard deviation 5.2
    assert tested.len() == 10
    assert tested.is_between(9, 51).all()


def test_last_out_takes_the_latest():
    table = pl.DataFrame(
        {
            "user_id": ["a"] * 4 + ["b"] * 2 + ["c"],
            "item_id": list("wxyz") + list("wx") + ["w"],
            "timestamp": [4, 1, 3, 2, 9, 8, 1],
        }
    )
    found = {
        (u, i): s
        for u, i, s in splits.split_last_out(table, 0)
        .select("user_id", "item_id", "split")
        .iter_rows()
    }
    assert found == {
        ("a", "w"): "test",
        ("a", "y"): "val",
        ("a", "z"): "train",
        ("a", "x"): "train",
        ("b", "w"): "test",
        ("b", "x"): "train",
        ("c", "w"): "train",
    }


@given(PAIRS)
def test_time_split_never_trains_on_the_future(pairs):
    found = splits.split_time(frame(pairs, timestamp=times(pairs)), (0.6, 0.2, 0.2))
    spans = [found.filter(pl.col("split") == s)["timestamp"] for s in ("train", "val", "test")]
    filled = [s for s in spans if len(s)]
    for earlier, later in itertools.pairwise(filled):
        assert earlier.max() < later.min()


def test_time_split_has_the_shares_where_times_differ():
    table = frame({(0, i) for i in range(100)}, timestamp=list(range(100)))
    counts = dict(splits.split_time(table, (0.8, 0.1, 0.1))["split"].value_counts().iter_rows())
    assert counts == {"train": 80, "val": 10, "test": 10}


def test_carving_keeps_the_given_rows_and_the_shares_over_all_users():
    pairs = {(u, i) for u in range(2000) for i in range(5)}
    given_split = ["test" if i == 4 else "train" for _, i in sorted(pairs)]
    found = splits.carve(frame(pairs, split=given_split), 0.1, 0.0, seed=1)
    test = found.filter(pl.col("split") == "test")
    assert test.height == 2000
    assert set(test["item_id"]) == {"4"}
    # 8000 train rows at 10 %: 800, standard deviation about 22
    assert 700 < found.filter(pl.col("split") == "val").height < 900


@given(PAIRS)
def test_carving_leaves_each_user_something_to_learn_from(pairs):
    found = splits.carve(frame(pairs, split=["train"] * len(pairs)), 0.45, 0.45, seed=0)
    train = found.filter(pl.col("split") == "train")
    assert train["user_id"].n_unique() == found["user_id"].n_unique()


@given(
    pairs=PAIRS,
    share=st.floats(0, 0.99),
    seed=st.integers(0, 5),
    order=st.randoms(use_true_random=False),
)
def test_items_held_out_bring_all_their_interactions_to_one_split(pairs, share, seed, order):
    table = frame(pairs)
    found = splits.hold_out_items(table, share, (0.6, 0.2, 0.2), seed)
    chosen = set(found["item_id"])
    assert as_set(found) == {(u, i) for u, i in as_set(table) if i in chosen}
    assert found.height == len(as_set(found))
    assert set(found["split"]) <= {"val", "test"}
    by_item = found.group_by("item_id").agg(pl.col("split").n_unique())
    assert (by_item["split"] == 1).all()
    rows = list(range(table.height))
    order.shuffle(rows)
    # Nor do other items and users matter.
    more = frame(pairs | {(99, 1), (98, 50)})
    for other in (table[rows], more):
        again = splits.hold_out_items(other, share, (0.6, 0.2, 0.2), seed)
        kept = again.join(table, on=["user_id", "item_id"], how="semi")
        assert as_set(kept, "split") == as_set(found, "split")


def test_the_share_of_items_held_out_and_its_two_parts_hold_over_many_items():
    table = frame({(0, i) for i in range(4000)})
    found = splits.hold_out_items(table, 0.3, (0.6, 0.3, 0.1), seed=1)
    # 1200 of 4000, standard deviation 29; three quarters of them for val, deviation 26 + 15
    assert 1080 < found.height < 1320
    assert 780 < found.filter(pl.col("split") == "val").height < 1020
    other = splits.hold_out_items(table, 0.3, (0.6, 0.3, 0.1), seed=2)
    assert as_set(other) != as_set(found)
    only_test = splits.hold_out_items(table, 0.3, (0.9, 0.0, 0.1), seed=1)
    assert as_set(only_test) == as_set(found)
    assert set(only_test["split"]) == {"test"}


def test_a_larger_share_holds_out_more_of_the_same_items():
    table = frame({(u, i) for u in range(3) for i in range(300)})
    held = [set(splits.hold_out_items(table, s, (1, 1, 1), 0)["item_id"]) for s in (0.1, 0.2, 0.5)]
    assert held[0] < held[1] < held[2]


@given(PAIRS, st.integers(1, 6))
def test_cap_keeps_the_latest(pairs, n):
    table = frame(pairs, timestamp=times(pairs))
    kept = splits.cap_per_user(table, n, seed=0)
    for (user,), rows in table.group_by("user_id"):
        mine = kept.filter(pl.col("user_id") == user)["timestamp"].sort(descending=True)
        assert mine.to_list() == rows["timestamp"].sort(descending=True).to_list()[:n]


def test_cap_without_timestamps_is_keyed():
    table = frame({(u, i) for u in range(3) for i in range(20)})
    kept = splits.cap_per_user(table, 5, seed=0)
    assert kept.height == 15
    assert as_set(splits.cap_per_user(table.reverse(), 5, seed=0)) == as_set(kept)
    assert as_set(splits.cap_per_user(table, 5, seed=1)) != as_set(kept)


def test_repeated_pairs_keep_the_latest_then_the_highest():
    table = pl.DataFrame(
        {
            "user_id": ["a", "a", "a", "b", "b"],
            "item_id": ["x", "x", "x", "y", "y"],
            "rating": [5.0, 2.0, 3.0, 1.0, 4.0],
            "timestamp": [1, 2, 2, 7, None],
        }
    )
    merged = splits.merge_duplicates(table).sort("user_id")
    assert merged["rating"].to_list() == [3.0, 1.0]
    assert splits.merge_duplicates(table.reverse()).sort("user_id").equals(merged)


def test_a_pair_in_two_splits_stays_in_the_earlier():
    table = pl.DataFrame(
        {
            "user_id": ["a", "a"],
            "item_id": ["x", "x"],
            "split": ["test", "train"],
            "timestamp": [9, 1],
        }
    )
    assert splits.merge_duplicates(table)["split"].to_list() == ["train"]


def test_items_without_text_go():
    table = frame({(0, 0), (0, 1), (0, 2), (0, 3)})
    items = pl.DataFrame({"item_id": ["0", "1", "2"], "title": ["Heat", "  ", None]})
    assert as_set(splits.filter_text(table, items, "title")) == {("0", "0")}
    with pytest.raises(DatasetError, match="no item table"):
        splits.filter_text(table, None, "title")
    with pytest.raises(DatasetError, match="`plot`"):
        splits.filter_text(table, items, "plot")


@pytest.mark.parametrize(
    ("call", "column"),
    [
        (lambda f: splits.filter_rating(f, 4), "rating"),
        (lambda f: splits.split_last_out(f, 0), "timestamp"),
        (lambda f: splits.split_time(f, (0.8, 0.1, 0.1)), "timestamp"),
    ],
)
def test_a_missing_column_or_value_is_named(call, column):
    table = frame({(0, 0), (0, 1)})
    with pytest.raises(DatasetError, match=f"`{column}`, which the raw data do not have"):
        call(table)
    with pytest.raises(DatasetError, match="1 of 2 rows have none"):
        call(table.with_columns(pl.Series(column, [1, None])))
