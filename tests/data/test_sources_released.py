from __future__ import annotations

import json
import pickle
import zipfile

import numpy as np
import pytest
import scipy.sparse as sp

from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.data.features import FeatureStore
from llmrec_pl.data.prepare import Protocol, prepare_dataset
from llmrec_pl.data.sources import detect
from llmrec_pl.data.sources.released import read_released
from llmrec_pl.errors import DatasetError

TRAIN = {"0": [3, 1, 4], "1": [5], "2": [2, 6, 0, 1]}
TEST = {"0": [7], "2": [3]}


def edges(splits):
    return {(int(u), i) for u, items in splits.items() for i in items}


def write(folder, *, val=None, test=None, matrix=None, rows=10, attributes=None):
    folder.mkdir(exist_ok=True)
    (folder / "train.json").write_text(json.dumps(TRAIN))
    for name, content in (("val", val), ("test", test)):
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content))
    if matrix is not None:
        (folder / "train_mat").write_bytes(pickle.dumps(matrix))
    if rows:
        np.save(folder / "image_feat.npy", np.arange(rows * 2, dtype=np.float32).reshape(rows, 2))
        np.save(folder / "text_feat.npy", np.ones((rows, 3)))
    if attributes is not None:
        (folder / "item_attribute.csv").write_text(attributes)
    return folder


def train_matrix(content=TRAIN, shape=(3, 10)):
    users, items = zip(*edges(content), strict=True)
    return sp.csr_matrix((np.ones(len(users), dtype=np.float32), (users, items)), shape=shape)


def test_everything_together(tmp_path):
    folder = write(tmp_path / "raw", val={"1": [9]}, test=TEST, matrix=train_matrix())
    assert detect(folder) == "released"
    raw = read_released(folder)
    assert raw.given_splits == ("train", "val", "test")
    prepare_dataset(raw, tmp_path / "out", Protocol(split="given"))
    dataset = InteractionDataset.load(tmp_path / "out", open_test=True)
    assert (dataset.n_users, dataset.n_items) == (3, 10)
    for split, content in (("train", TRAIN), ("val", {"1": [9]}), ("test", TEST)):
        found = zip(*dataset.splits[split].tocoo().coords, strict=True)
        assert {(int(u), int(i)) for u, i in found} == edges(content)
    features = FeatureStore.load(tmp_path / "out")
    assert np.array_equal(features["image"].dense(), np.arange(20.0).reshape(10, 2))
    assert len(features["text"].values) == 1


def test_val_that_equals_test_is_noticed_and_replaced(tmp_path):
    shuffled = {u: TEST[u] for u in reversed(TEST)}
    for val, how in ((TEST, "byte for byte"), (shuffled, "in content")):
        raw = read_released(write(tmp_path / "raw", val=val, test=TEST))
        assert raw.given_splits == ("train", "test")
        assert how in raw.provenance["notes"][0]
    meta = prepare_dataset(raw, tmp_path / "out", Protocol(split="given", ratios=(0.5, 0.4, 0.1)))
    assert meta["protocol"]["carved"] == ["val"]
    assert meta["counts"]["splits"]["test"] == 2
    dataset = InteractionDataset.load(tmp_path / "out")
    val = {(int(u), int(i)) for u, i in zip(*dataset.val.tocoo().coords, strict=True)}
    assert val
    assert val < edges(TRAIN)


def test_train_alone_is_enough(tmp_path):
    raw = read_released(write(tmp_path / "raw", rows=0))
    assert raw.given_splits == ("train",)
    assert raw.items.height == 7
    assert read_released(tmp_path / "raw", n_items=12).items.height == 12
    with pytest.raises(DatasetError, match=r"`n_items` is 6 but .* has item 6; give at least 7"):
        read_released(tmp_path / "raw", n_items=6)


def test_a_zip_is_read_like_a_folder(tmp_path):
    folder = write(tmp_path / "raw", test=TEST, matrix=train_matrix())
    with zipfile.ZipFile(tmp_path / "r.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"netflix/{file.name}")
    left, right = read_released(folder), read_released(tmp_path / "r.zip")
    assert left.interactions.equals(right.interactions)
    assert np.array_equal(left.features[0].values, right.features[0].values)


def test_a_train_matrix_that_disagrees_is_an_error(tmp_path):
    other = {**TRAIN, "1": [8]}
    write(tmp_path / "raw", matrix=train_matrix(other))
    with pytest.raises(DatasetError, match="1 edges are only in `train_mat` and 1 only in"):
        read_released(tmp_path / "raw")
    write(tmp_path / "raw", matrix={"no": "matrix"})
    with pytest.raises(DatasetError, match="holds a dict, expected a sparse matrix"):
        read_released(tmp_path / "raw")


def test_a_matrix_with_stored_zeros_agrees(tmp_path):
    matrix = train_matrix({**TRAIN, "1": [5, 9]})
    matrix.data[matrix.indices == 9] = 0
    assert read_released(write(tmp_path / "raw", matrix=matrix)).items.height == 10


def test_features_must_have_a_row_for_each_item(tmp_path):
    folder = write(tmp_path / "raw")
    np.save(folder / "text_feat.npy", np.ones((9, 3)))
    with pytest.raises(DatasetError, match=r"`text_feat.npy` .* has 9 rows but the data have 10"):
        read_released(folder)
    np.save(folder / "text_feat.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DatasetError, match=r"cannot read .*text_feat.npy"):
        read_released(folder)
    np.save(folder / "text_feat.npy", np.arange(10))
    with pytest.raises(DatasetError, match="expected a matrix of floats"):
        read_released(folder)


@pytest.mark.parametrize(
    ("text", "year", "title"),
    [
        ("0,2003,Dinosaur Planet\n7,NULL,Heat, Part 2\n", "2003", "Dinosaur Planet"),
        ("id,year,title\n0,2003,Dinosaur Planet\n7,,Heat\n", "2003", "Dinosaur Planet"),
        (",year,title\n0,2003.0,Dinosaur Planet\n", "2003.0", "Dinosaur Planet"),
    ],
)
def test_titles_are_kept_apart_unless_trusted(tmp_path, text, year, title):
    folder = write(tmp_path / "raw", attributes=text)
    raw = read_released(folder)
    assert raw.items.columns == ["item_id", "attribute_year", "attribute_title"]
    assert raw.items.row(0) == ("0", year, title)
    assert "do not line up" in raw.provenance["notes"][-1]
    trusted = read_released(folder, titles_aligned=True).items
    assert trusted.row(0) == ("0", 2003, title)
    assert trusted.columns == ["item_id", "year", "title"]


def test_titles_with_commas_and_movielens_columns(tmp_path):
    folder = write(tmp_path / "raw", attributes="0,1999,Good, Bad, Ugly\n")
    assert read_released(folder).items["attribute_title"][0] == "Good, Bad, Ugly"
    folder = write(tmp_path / "raw", attributes="0,Toy Story (1995),Animation|Comedy\n")
    assert read_released(folder).items.columns[1:] == ["attribute_title", "attribute_genres"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[1]", "holds a list"),
        ('{"a": [1]}', "has user 'a'"),
        ('{"0": 3}', "has 3 for user 0"),
        ('{"0": [1, -2]}', "item -2 for user 0"),
        ('{"0": [1, "2"]}', "item '2' for user 0"),
        ('{"0": [true]}', "item True for user 0"),
    ],
)
def test_bad_json_is_named(tmp_path, text, message):
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(DatasetError, match=f"train.json.*{message}"):
        read_released(tmp_path)


@pytest.mark.real
def test_real_netflix(real_data):
    raw = read_released(real_data / "netflix", n_items=17_366)
    assert raw.interactions.height == 68_933
    assert (raw.users.height, raw.items.height) == (13_187, 17_366)
