from __future__ import annotations

import dataclasses
import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec_pl.data import prepare, splits
from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.data.features import FeatureStore
from llmrec_pl.data.prepare import apply_split, prepare_dataset, sort_ids
from llmrec_pl.data.protocol import Protocol
from llmrec_pl.data.sources.base import RawDataset, RawFeature
from llmrec_pl.data.sources.simulated import simulate
from llmrec_pl.errors import DatasetError


def small(**changes):
    rows = [(u, i) for u in range(4) for i in range(10) if (u + i) % 3]
    raw = RawDataset(
        "small",
        pl.DataFrame(
            {
                "user_id": [str(u + 8) for u, _ in rows],
                "item_id": [str(i + 95) for _, i in rows],
                "rating": [float(1 + (u * i) % 5) for u, i in rows],
            }
        ),
        items=pl.DataFrame({"item_id": [str(i) for i in range(95, 110)], "title": ["T"] * 15}),
    )
    for name, value in changes.items():
        setattr(raw, name, value)
    return raw


def test_folder_loads_verifies_and_keeps_ids_and_texts(tmp_path):
    raw = simulate(n_users=40, n_items=60)
    meta = prepare_dataset(raw, tmp_path / "out", Protocol(min_rating=4))
    dataset = InteractionDataset.load(tmp_path / "out", open_test=True)
    positives = raw.interactions.filter(pl.col("rating") >= 4)
    assert dataset.n_users == positives["user_id"].n_unique()
    assert dataset.n_items == positives["item_id"].n_unique()
    found = {
        (str(dataset.user_ids[u]), str(dataset.item_ids[i]))
        for matrix in dataset.splits.values()
        for u, i in zip(*matrix.tocoo().coords, strict=True)
    }
    assert found == set(positives.select("user_id", "item_id").iter_rows())
    titles = dict(raw.items.select("item_id", "title").iter_rows())
    assert dataset.items_frame()["title"].to_list() == [titles[str(i)] for i in dataset.item_ids]
    assert meta["counts"]["raw"] == raw.interactions.height
    assert meta["counts"]["removed"]["rating below 4"] == raw.interactions.height - positives.height
    assert sum(meta["counts"]["splits"].values()) == positives.height


def test_interactions_have_the_documented_columns(tmp_path):
    prepare_dataset(simulate(n_users=20, n_items=40), tmp_path / "out", Protocol())
    frame = pl.read_parquet(tmp_path / "out" / "interactions.parquet")
    assert frame.columns == ["user", "item", "rating", "timestamp", "split"]
    assert frame["user"].dtype == frame["item"].dtype == pl.Int32
    assert frame.select("user", "item").equals(frame.select("user", "item").sort("user", "item"))


def test_same_input_same_bytes_and_row_order_does_not_matter(tmp_path):
    raw = simulate(n_users=30, n_items=40)
    first = prepare_dataset(raw, tmp_path / "a", Protocol(min_rating=3, k_core_users=2))
    raw.interactions = raw.interactions.sample(fraction=1.0, shuffle=True, seed=1)
    second = prepare_dataset(raw, tmp_path / "b", Protocol(min_rating=3, k_core_users=2))
    assert first == second


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"min_rating": 3},
        {"ratios": (0.6, 0.2, 0.2)},
        {"split": "time"},
        {"cold_items": 0.3},
    ],
)
def test_every_choice_takes_part_in_the_fingerprint(tmp_path, change):
    raw = simulate(n_users=30, n_items=40)
    first = prepare_dataset(raw, tmp_path / "a", Protocol())
    second = prepare_dataset(raw, tmp_path / "b", Protocol(**change))
    assert first["fingerprint"] != second["fingerprint"]


def test_whole_and_decimal_thresholds_are_one_protocol(tmp_path):
    metas = [
        prepare_dataset(small(), tmp_path / str(n), Protocol(min_rating=x))
        for n, x in enumerate((2, 2.0))
    ]
    assert metas[0]["fingerprint"] == metas[1]["fingerprint"]


@given(st.lists(st.text(max_size=5) | st.integers(-5, 10**20).map(str), unique=True))
def test_ids_sort_by_value_then_as_text(ids):
    def key(text):
        whole = text.isascii() and text.removeprefix("-").isdigit() and abs(int(text)) < 2**63
        return (0, int(text), text) if whole else (1, 0, text)

    found = sort_ids(pl.Series(ids, dtype=pl.String)).to_list()
    assert found == sorted(ids, key=key)


def test_ids_are_numbered_by_value_not_as_text(tmp_path):
    prepare_dataset(small(), tmp_path / "out", Protocol())
    dataset = InteractionDataset.load(tmp_path / "out")
    assert dataset.user_ids.tolist() == ["8", "9", "10", "11"]
    assert dataset.item_ids[0] == "95"
    assert dataset.item_ids[-1] == "104"
    assert dataset.meta["counts"]["items_of_table_left_out"] == 5


def test_fixed_catalogue_keeps_rows_without_interactions(tmp_path):
    prepare_dataset(small(fixed_catalogue=True), tmp_path / "out", Protocol())
    dataset = InteractionDataset.load(tmp_path / "out")
    assert dataset.item_ids.tolist() == [str(i) for i in range(95, 110)]


def test_fixed_catalogue_refuses_unknown_items_and_idle_users(tmp_path):
    raw = small(fixed_catalogue=True)
    raw.items = raw.items.head(9)
    with pytest.raises(DatasetError, match="item_id '104', which is not in the fixed item table"):
        prepare_dataset(raw, tmp_path / "out", Protocol())
    raw = small(fixed_catalogue=True, users=pl.DataFrame({"user_id": ["8", "9", "10", "11", "12"]}))
    with pytest.raises(DatasetError, match=r"1 of 5 users .* the first is '12'"):
        prepare_dataset(raw, tmp_path / "out", Protocol())
    prepare_dataset(raw, tmp_path / "out", Protocol(), allow_empty_users=True)
    assert InteractionDataset.load(tmp_path / "out").n_users == 5


def test_ready_made_features_follow_the_items(tmp_path):
    values = np.arange(15, dtype=np.float64)[:, None] % 4 + np.zeros(3)
    raw = small(features=[RawFeature("item", "text", "modality", values)])
    prepare_dataset(raw, tmp_path / "out", Protocol())
    dataset = InteractionDataset.load(tmp_path / "out")
    feature = FeatureStore.load(tmp_path / "out")["text"]
    rows = [int(i) - 95 for i in dataset.item_ids]
    assert np.array_equal(feature.dense(), values[rows])
    assert len(feature.values) == 4


def test_given_splits_are_kept_and_val_is_carved(tmp_path):
    raw = small()
    split = ["test" if n % 7 == 0 else "train" for n in range(raw.interactions.height)]
    raw.interactions = raw.interactions.with_columns(pl.Series("split", split))
    raw.given_splits = ("train", "test")
    meta = prepare_dataset(raw, tmp_path / "out", Protocol(split="given", ratios=(0.6, 0.3, 0.1)))
    assert meta["protocol"]["carved"] == ["val"]
    assert meta["counts"]["splits"]["test"] == split.count("test")
    assert meta["counts"]["splits"]["val"] > 0


@pytest.mark.parametrize("split", ["random", "leave-last-out", "time", "given"])
def test_cold_items_have_no_train_and_the_others_are_split_as_chosen(tmp_path, split):
    raw = simulate(n_users=60, n_items=80)
    if split == "given":
        part = ["train" if n % 3 else "test" for n in range(raw.interactions.height)]
        raw.interactions = raw.interactions.with_columns(pl.Series("split", part))
        raw.given_splits = ("train", "test")
    protocol = Protocol(split=split, ratios=(0.6, 0.2, 0.2), cold_items=0.3)
    meta = prepare_dataset(raw, tmp_path / "out", protocol)
    assert meta["protocol"]["cold_items"] == 0.3
    data = InteractionDataset.load(tmp_path / "out", open_test=True)
    cold = set(
        splits.hold_out_items(raw.interactions, 0.3, (0.6, 0.2, 0.2), protocol.seed)["item_id"]
    )
    assert 10 < len(cold) < 40
    is_cold = np.isin(data.item_ids, sorted(cold))
    counts = {name: matrix.sum(axis=0) for name, matrix in data.splits.items()}
    assert not counts["train"][is_cold].any()
    assert not (counts["val"].astype(bool) & counts["test"].astype(bool))[is_cold].any()
    assert counts["val"][is_cold].any()
    assert counts["test"][is_cold].any()
    warm, _ = apply_split(
        raw.interactions.filter(~pl.col("item_id").is_in(sorted(cold))),
        raw,
        dataclasses.replace(protocol, cold_items=0.0),
    )
    sizes = dict(warm["split"].value_counts().iter_rows())
    for name in ("train", "val", "test"):
        assert counts[name][~is_cold].sum() == sizes[name]


def test_without_cold_items_the_protocol_is_as_it_was(tmp_path):
    meta = prepare_dataset(small(), tmp_path / "out", Protocol())
    assert "cold_items" not in meta["protocol"]


def test_a_leak_between_given_splits_is_counted(tmp_path):
    raw = small()
    train = raw.interactions.with_columns(split=pl.lit("train"))
    leak = train.head(2).with_columns(split=pl.lit("test"))
    clean = pl.DataFrame({"user_id": ["8"], "item_id": ["109"], "rating": [3.0], "split": ["test"]})
    raw.interactions = pl.concat([leak, train, clean])
    raw.given_splits = ("train", "test")
    meta = prepare_dataset(raw, tmp_path / "out", Protocol(split="given"))
    assert meta["counts"]["removed"]["in an earlier split"] == 2
    assert meta["counts"]["splits"]["test"] == 1


def test_errors_name_the_cause_and_the_remedy(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(DatasetError, match=r"nothing is left of .* Loosen the filters"):
        prepare_dataset(small(), out, Protocol(min_rating=6))
    single = small(interactions=pl.DataFrame({"user_id": ["1"], "item_id": ["1"]}))
    with pytest.raises(DatasetError, match="no test interactions of 1"):
        prepare_dataset(single, out, Protocol())
    with pytest.raises(DatasetError, match="bring no split"):
        prepare_dataset(small(), out, Protocol(split="given"))
    twice = small(items=pl.DataFrame({"item_id": ["95", "95"]}))
    with pytest.raises(DatasetError, match="item_id '95' twice"):
        prepare_dataset(twice, out, Protocol())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "bad",
    [
        {"ratios": (0.8, 0.1, 0.2)},
        {"ratios": (1.1, -0.1, 0.0)},
        {"ratios": (0.9, 0.1, 0.0)},
        {"split": "user"},
        {"k_core_users": 0},
        {"max_per_user": 0},
        {"cold_items": 1.0},
        {"cold_items": -0.1},
    ],
)
def test_protocol_refuses_values_out_of_range(bad):
    with pytest.raises(DatasetError, match=next(iter(bad))):
        Protocol(**bad)


def test_an_existing_folder_is_refused_or_replaced(tmp_path):
    out = tmp_path / "out"
    prepare_dataset(small(), out, Protocol())
    (out / "note.txt").write_text("mine")
    with pytest.raises(DatasetError, match="--overwrite"):
        prepare_dataset(small(), out, Protocol())
    prepare_dataset(small(), out, Protocol(seed=3), overwrite=True)
    assert json.loads((out / "dataset.json").read_text())["protocol"]["seed"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_folder_of_something_else_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("do not delete")
    with pytest.raises(DatasetError, match="is no data set folder"):
        prepare_dataset(small(), tmp_path, Protocol(), overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


def test_a_crash_leaves_the_old_folder_and_no_rubbish(tmp_path, monkeypatch):
    out = tmp_path / "out"
    before = prepare_dataset(small(), out, Protocol())

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "write_meta", fail)
    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(small(), out, Protocol(seed=9), overwrite=True)
    assert InteractionDataset.load(out).fingerprint == before["fingerprint"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
