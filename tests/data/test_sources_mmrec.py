from __future__ import annotations

import zipfile

import numpy as np
import polars as pl
import pytest

from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.data.features import FeatureStore
from llmrec_pl.data.prepare import Protocol, prepare_dataset
from llmrec_pl.data.sources import detect
from llmrec_pl.data.sources.mmrec import read_mmrec
from llmrec_pl.errors import DatasetError

HEADER = "userID\titemID\trating\ttimestamp\tx_label\n"
ROWS = (
    "0\t3\t5.0\t1400000000\t0\n"
    "0\t1\t4.0\t1400000001\t1\n"
    "0\t2\t1.0\t1400000002\t2\n"
    "1\t0\t5.0\t1400000003\t0\n"
    "1\t3\t3.0\t1400000004\t2\n"
)
ITEMS = "asin\titemID\nB00Z\t0\nB00Y\t1\nB00X\t2\nB00W\t3\n"
USERS = "user_id\tuserID\nA1\t0\nA2\t1\n"
IMAGE = np.arange(8, dtype=np.float32).reshape(4, 2)
TEXT = np.arange(12, dtype=np.float64).reshape(4, 3) / 7


def write(folder, rows=HEADER + ROWS, *, features=None, **tables):
    folder.mkdir(exist_ok=True)
    (folder / "baby.inter").write_text(rows, encoding="utf-8")
    chosen = {"image": IMAGE, "text": TEXT} if features is None else features
    for name, values in chosen.items():
        np.save(folder / f"{name}_feat.npy", values)
    for name, text in tables.items():
        (folder / f"{name}_id_mapping.csv").write_text(text, encoding="utf-8")
    return folder


def test_interactions_splits_and_original_ids(tmp_path):
    folder = write(tmp_path / "baby", i=ITEMS, u=USERS)
    assert detect(folder) == "mmrec"
    raw = read_mmrec(folder)
    assert raw.name == "baby"
    assert raw.given_splits == ("train", "val", "test")
    assert raw.interactions.columns == ["user_id", "item_id", "rating", "timestamp", "split"]
    assert raw.interactions.rows()[:3] == [
        ("A1", "B00W", 5.0, 1400000000, "train"),
        ("A1", "B00Y", 4.0, 1400000001, "val"),
        ("A1", "B00X", 1.0, 1400000002, "test"),
    ]
    assert set(raw.provenance["files"]) == {
        "baby.inter", "image_feat.npy", "text_feat.npy", "i_id_mapping.csv", "u_id_mapping.csv"
    }  # fmt: skip


def by_original_id(root):
    """Return {original id: feature row} of each feature, as the trainer would see them."""
    dataset = InteractionDataset.load(root)
    return {
        name: dict(zip(dataset.item_ids.tolist(), feature.dense().tolist(), strict=True))
        for name, feature in FeatureStore.load(root).items()
    }


@pytest.mark.parametrize("packed", [False, True])
def test_features_follow_their_items_through_renumbering(tmp_path, packed):
    folder = write(tmp_path / "baby", i=ITEMS)
    if packed:
        source = tmp_path / "baby.zip"
        with zipfile.ZipFile(source, "w") as archive:
            for path in folder.iterdir():
                archive.write(path, f"baby/{path.name}")
        folder = source
    prepare_dataset(read_mmrec(folder), tmp_path / "out", Protocol(split="given"))
    found = by_original_id(tmp_path / "out")
    names = ["B00Z", "B00Y", "B00X", "B00W"]  # sorted otherwise than itemID
    assert found["image"] == {n: IMAGE[i].tolist() for i, n in enumerate(names)}
    assert found["text"] == {n: TEXT[i].astype(np.float32).tolist() for i, n in enumerate(names)}


def test_features_stay_aligned_when_filters_drop_items(tmp_path):
    raw = read_mmrec(write(tmp_path / "baby"))
    prepare_dataset(raw, tmp_path / "out", Protocol(split="given", min_rating=2.0))
    found = by_original_id(tmp_path / "out")["image"]
    assert found == {str(i): IMAGE[i].tolist() for i in (0, 1, 3)}


def test_any_feature_file_by_its_name_and_items_nobody_took(tmp_path):
    features = {"v_2": np.eye(6), "audio": np.ones((6, 1))}
    raw = read_mmrec(write(tmp_path / "baby", features=features))
    assert [(f.side, f.name, f.group) for f in raw.features] == [
        ("item", "audio", "modality"), ("item", "v_2", "modality")
    ]  # fmt: skip
    assert raw.items["item_id"].to_list() == ["0", "1", "2", "3", "4", "5"]


def test_without_features_ratings_and_split(tmp_path):
    raw = read_mmrec(write(tmp_path / "baby", "userID\titemID\n7\t03\n", features={}))
    assert raw.interactions.rows() == [("7", "3")]
    assert raw.given_splits == ()
    assert "no column `x_label`" in raw.provenance["notes"][0]


def test_a_mapping_with_commas(tmp_path):
    raw = read_mmrec(write(tmp_path / "baby", i=ITEMS.replace("\t", ",")))
    assert raw.items["item_id"].to_list() == ["B00Z", "B00Y", "B00X", "B00W"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("user\titemID\n1\t2\n", r"no column \['userID'\].*prepare recbole"),
        (HEADER + "0\tx\t1\t1\t0\n", r"baby\.inter' line 2 has 'x' in column `itemID`"),
        (HEADER + ROWS + "0\t-1\t1\t1\t0\n", r"line 7 has '-1' in column `itemID`"),
        (HEADER + ROWS + "0\t1\t1\t1\t3\n", r"line 7 has '3' in column `x_label`, expected 0"),
        (HEADER + ROWS + "0\t1\t1\t1\t\n", r"line 7 has None in column `x_label`"),
        (HEADER + "0\t1\tgood\t1\t0\n", r"line 2 has 'good' in column `rating`"),
        (HEADER + "\t1\t1\t1\t0\n", "line 2 has no value in column `userID`"),
        (HEADER + ROWS + "0\t4\t1\t1\t0\n", r"line 7 has item 4 but '.*image_feat.npy' has 4 rows"),
        (HEADER + "0\t1\n", r"line 2 "),
    ],
)
def test_bad_rows_are_named(tmp_path, rows, message):
    with pytest.raises(DatasetError, match=message):
        read_mmrec(write(tmp_path / "baby", rows))


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ("asin\titem\nB\t0\n", r"i_id_mapping.csv' has no column \['itemID'\]"),
        ("asin\titemID\nB00Z\t0\n", r"no row for itemID 3 \(3 are missing\)"),
        (ITEMS + "B00V\t2\n", "line 6 has '2' in column `itemID` once more"),
        (ITEMS + "B00Z\t4\n", "line 6 has 'B00Z' in column `asin` once more"),
        ("a\tb\titemID\n1\t2\t0\n", r"expected `itemID` and one with original ids"),
        ("asin\titemID\n\t0\n", "line 2 has no value in column `asin`"),
    ],
)
def test_bad_mappings_are_named(tmp_path, mapping, message):
    with pytest.raises(DatasetError, match=message):
        read_mmrec(write(tmp_path / "baby", i=mapping))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"image": IMAGE, "text": TEXT[:3]}, r"text_feat.npy' has 3 rows but `image_feat.npy` has"),
        ({"image": IMAGE.astype(int)}, "type int64; expected a matrix of floats"),
        ({"image": IMAGE[0]}, r"shape \(2,\)"),
        ({"image": np.where(IMAGE == 4, np.nan, IMAGE)}, "NaN or infinite values in row 2"),
    ],
)
def test_bad_features_are_named(tmp_path, features, message):
    with pytest.raises(DatasetError, match=message):
        read_mmrec(write(tmp_path / "baby", features=features))


def test_exactly_one_data_set(tmp_path):
    with pytest.raises(DatasetError, match=r"exactly one `.inter` file, it has none"):
        read_mmrec(tmp_path)
    (write(tmp_path) / "sports.inter").write_text(HEADER)
    with pytest.raises(DatasetError, match=r"it has \['baby.inter', 'sports.inter'\]"):
        read_mmrec(tmp_path)


def test_the_command(tmp_path, monkeypatch, capsys):
    from llmrec_pl.cli import run_plain

    monkeypatch.chdir(tmp_path)
    users = [f"{u}\t{i}\t1\t{u}\t{min(2, i)}\n" for u in range(5) for i in range(4)]
    write(tmp_path / "raw", HEADER + "".join(users), i=ITEMS)
    run_plain("prepare", ["mmrec", "--source", "raw", "--name", "baby"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "│ split │ given │" in shown
    assert "│ feature image │ 4 x 2 │" in shown
    root = tmp_path / "data" / "baby"
    assert set(by_original_id(root)) == {"image", "text"}
    sizes = pl.read_parquet(root / "interactions.parquet")["split"].value_counts()
    assert dict(sizes.iter_rows()) == {"train": 5, "val": 5, "test": 10}
