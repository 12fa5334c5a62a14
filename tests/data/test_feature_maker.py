from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from canonical_folder import write_folder
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from llmrec_pl.data.feature_inputs import (
    array_rows,
    distinct_inputs,
    image_inputs,
    original_ids,
    side_table,
    text_inputs,
)
from llmrec_pl.data.feature_maker import (
    GROUP_BATCHES,
    cast,
    encode_inputs,
    feature_of_inputs,
    feature_of_rows,
    run_hash,
    store_feature,
)
from llmrec_pl.data.features import Feature, FeatureStore, check_feature, deduplicate
from llmrec_pl.errors import DatasetError

IDS = [f"m{i + 1}" for i in range(6)]


class LengthEncoder:
    """Encodes a text by its length and first letter; can fail or dawdle at a chosen group."""

    label, batch_size, dim = "length", 2, 2

    def __init__(self, fail_at: int | None = None, wait: float = 0.0, version: str = "1") -> None:
        self.calls: list[list[str]] = []
        self.seen: list[str] = []
        self.fail_at, self.wait, self.identity = fail_at, wait, f"length:{version}"
        self.info = {"encoder": self.label}

    def prepare(self, inputs):
        self.prepared = list(inputs)

    def encode(self, inputs):
        if len(self.calls) == self.fail_at:
            raise KeyboardInterrupt
        self.calls.append(list(inputs))
        self.seen.extend(inputs)
        time.sleep(self.wait)
        return np.array([[len(t), ord(t[0])] for t in inputs], dtype=np.float32)


def texts_of(n: int):
    return distinct_inputs([(f"t{'x' * i}", f"t{'x' * i}") for i in range(n)], {})


@pytest.fixture
def root(tmp_path):
    return write_folder(tmp_path / "tiny")


def partials(root: Path) -> list[Path]:
    return sorted((root / "features" / ".partial").glob("*/*.npy"))


# inputs


@given(st.lists(st.none() | st.sampled_from(["a", "b", "c", "d"]), max_size=30))
def test_distinct_inputs_round_trip(rows):
    inputs = distinct_inputs([None if r is None else (r, r.upper()) for r in rows], {})
    assert len(set(inputs.keys)) == len(inputs.keys) == len(inputs.values)
    back = [None if i < 0 else inputs.values[i] for i in inputs.index]
    assert back == [None if r is None else r.upper() for r in rows]


@given(st.lists(st.none() | st.tuples(st.sampled_from([0.0, 1.0, 2.5]), st.booleans()), min_size=1))
def test_deduplicate_round_trip(rows):
    missing = np.array([r is None for r in rows])
    values = np.array([[0.0, 0.0] if r is None else r for r in rows], dtype=np.float32)
    distinct, index = deduplicate(values, missing)
    if index is None:
        assert not missing.any()
        index = np.arange(len(rows))
    assert len(np.unique(distinct, axis=0)) == len(distinct)
    np.testing.assert_array_equal(index < 0, missing)
    np.testing.assert_array_equal(distinct[index[~missing]], values[~missing])


def test_several_columns_are_labelled_and_empty_fields_left_out(root):
    inputs = text_inputs(side_table(root, "item"), "item", ["title", "year", "genres"])
    assert inputs.values == [
        "title: Alien; year: 1979; genres: Horror, Sci-Fi",
        "title: Brazil; year: 1985; genres: Sci-Fi",
        "title: Down by Law; year: 1986; genres: Comedy",
        "title: Eraserhead; year: 1977; genres: Horror",
    ]
    assert inputs.index.tolist() == [0, 1, 1, -1, 2, 3]


def test_one_column_gives_its_bare_value(root):
    inputs = text_inputs(side_table(root, "user"), "user", ["job"])
    assert inputs.values == ["cook"]
    assert inputs.index.tolist() == [0, 0, -1]


def test_lists_and_white_space_are_rendered_plainly():
    table = pl.DataFrame({"item": [0], "item_id": ["7"], "cast": [["A  B", "", "C\n"]]})
    assert text_inputs(table, "item", ["cast"]).values == ["A B, C"]


def test_unknown_column_lists_the_columns(root):
    with pytest.raises(DatasetError, match=r"\['plot'\]; it has \['title', 'genres', 'year'\]"):
        text_inputs(side_table(root, "item"), "item", ["title", "plot"])


def test_column_without_any_text_is_an_error(tmp_path):
    root = write_folder(tmp_path / "tiny", {"title": ["a", "b", "c"], "plot": ["", None, " "]})
    with pytest.raises(DatasetError, match=r"no item has a text.*title"):
        text_inputs(side_table(root, "item"), "item", ["plot"])


def save_picture(path: Path, shade: int) -> None:
    Image.new("RGB", (8, 12), (shade, 0, 0)).save(path)


def test_pictures_are_matched_by_id_and_read_once(tmp_path):
    for name, shade in [("m1.png", 1), ("m3.png", 1), ("m5.PNG", 2), ("other.png", 3)]:
        save_picture(tmp_path / name, shade)
    (tmp_path / "notes.txt").write_text("no picture")
    inputs = image_inputs(tmp_path, IDS, "item")
    assert [path.name for path in inputs.values] == ["m1.png", "m5.PNG"]
    assert inputs.index.tolist() == [0, -1, 0, -1, 1, -1]
    assert inputs.notes == {"files without a row": 1, "unreadable files": 0}


def test_no_matching_picture_shows_what_was_expected(tmp_path):
    save_picture(tmp_path / "poster-1.png", 1)
    with pytest.raises(DatasetError, match=r"m1\.jpg.*1 image files.*poster-1\.png"):
        image_inputs(tmp_path, IDS, "item")
    with pytest.raises(DatasetError, match="no folder"):
        image_inputs(tmp_path / "nowhere", IDS, "item")


def test_two_pictures_for_one_id_are_an_error(tmp_path):
    save_picture(tmp_path / "m1.png", 1)
    save_picture(tmp_path / "m1.webp", 1)
    with pytest.raises(DatasetError, match=r"two images for id 'm1'.*m1\.png.*m1\.webp"):
        image_inputs(tmp_path, IDS, "item")


def test_unreadable_picture_stops_or_is_counted(tmp_path):
    save_picture(tmp_path / "m1.png", 1)
    (tmp_path / "m2.png").write_bytes(b"broken")
    with pytest.raises(DatasetError, match=r"m2\.png.*--skip-unreadable"):
        image_inputs(tmp_path, IDS, "item")
    inputs = image_inputs(tmp_path, IDS, "item", skip_unreadable=True)
    assert inputs.index.tolist() == [0, -1, -1, -1, -1, -1]
    assert inputs.notes["unreadable files"] == 1


def test_matrix_in_row_order(tmp_path):
    matrix = np.arange(12, dtype=np.float64).reshape(6, 2)
    np.save(tmp_path / "a.npy", matrix)
    values, missing = array_rows(tmp_path / "a.npy", IDS, "item")
    np.testing.assert_array_equal(values, matrix)
    assert not missing.any()


@pytest.mark.parametrize("suffix", [".txt", ".npy"])
def test_matrix_with_ids(tmp_path, suffix):
    np.save(tmp_path / "a.npy", np.array([[1, 2], [3, 4]]))
    ids = tmp_path / f"ids{suffix}"
    np.save(ids, np.array(["m5", "m2"])) if suffix == ".npy" else ids.write_text("m5\nm2\n")
    values, missing = array_rows(tmp_path / "a.npy", IDS, "item", ids)
    assert missing.tolist() == [True, False, True, True, False, True]
    np.testing.assert_array_equal(values[[4, 1]], [[1, 2], [3, 4]])


@pytest.mark.parametrize(
    ("matrix", "ids", "message"),
    [
        (np.zeros((5, 2)), None, r"5 rows for 6 items; give the id"),
        (np.zeros((1, 2)), "m1\nm2", r"1 rows for 2 ids"),
        (np.zeros(6), None, r"shape \(6,\)"),
        (np.array([["a"]] * 6), None, "expected numbers"),
        (
            np.array([[0.0], [0.0], [np.nan], [0], [np.inf], [0]]),
            None,
            r"in 2 rows, first in row 2.*'m3'",
        ),
        (np.zeros((2, 1)), "m1\nx9", r"1 of 2 ids.*first 'x9' in row 1"),
        (np.zeros((2, 1)), "m1\nm1", r"'m1' is twice"),
    ],
)
def test_unfit_matrix_is_refused(tmp_path, matrix, ids, message):
    np.save(tmp_path / "a.npy", matrix)
    if ids is not None:
        (tmp_path / "ids.txt").write_text(ids)
    with pytest.raises(DatasetError, match=message):
        array_rows(tmp_path / "a.npy", IDS, "item", tmp_path / "ids.txt" if ids else None)


def test_file_that_is_no_matrix_is_refused(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"PK")
    with pytest.raises(DatasetError, match=r"cannot read the matrix.*numpy\.save"):
        array_rows(tmp_path / "a.npy", IDS, "item")


# encoding


def test_each_distinct_input_is_encoded_once(root):
    encoder = LengthEncoder()
    inputs = text_inputs(side_table(root, "item"), "item", ["title"])
    vectors = encode_inputs(encoder, inputs, root, "item_text")
    assert encoder.seen == encoder.prepared == ["Alien", "Brazil", "Down by Law", "Eraserhead"]
    feature = feature_of_inputs(inputs, vectors, name="text", side="item", group="modality")
    assert feature.dense()[:, 0].tolist() == [5, 6, 6, 0, 11, 10]
    assert feature.n_missing == 1


def test_interrupted_run_goes_on_where_it_stopped(root):
    size = LengthEncoder.batch_size * GROUP_BATCHES
    inputs = texts_of(3 * size + 5)
    whole = encode_inputs(LengthEncoder(version="whole"), inputs, root, "item_whole")
    broken = LengthEncoder(fail_at=2)
    with pytest.raises(KeyboardInterrupt):
        encode_inputs(broken, inputs, root, "item_text")
    assert len(broken.calls) == 2
    again = LengthEncoder()
    vectors = encode_inputs(again, inputs, root, "item_text")
    assert again.seen == inputs.values[2 * size :]
    np.testing.assert_array_equal(vectors, whole)


_KILLED = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from test_feature_maker import LengthEncoder, encode_inputs, texts_of
encode_inputs(LengthEncoder(wait=0.2), texts_of(400), Path(sys.argv[1]), "item_text")
"""


def test_killed_process_loses_at_most_one_group(root):
    here = Path(__file__)
    places = [str(root), str(here.parent), str(here.parents[1])]
    process = subprocess.Popen([sys.executable, "-c", _KILLED, *places])
    deadline = time.monotonic() + 60
    while len(partials(root)) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = len(partials(root))
    assert 3 <= done < 400 // 16
    encoder = LengthEncoder()
    inputs = texts_of(400)
    vectors = encode_inputs(encoder, inputs, root, "item_text")
    assert encoder.seen == inputs.values[done * 16 :]
    np.testing.assert_array_equal(vectors, LengthEncoder().encode(inputs.values))


def test_damaged_group_is_encoded_again(root):
    inputs = texts_of(20)
    expected = encode_inputs(LengthEncoder(), inputs, root, "item_text")
    first, second = partials(root)
    first.write_bytes(first.read_bytes()[:-8])
    second.write_bytes(b"")
    encoder = LengthEncoder()
    np.testing.assert_array_equal(encode_inputs(encoder, inputs, root, "item_text"), expected)
    assert len(encoder.calls) == 2


def test_other_encoder_or_inputs_start_anew(root):
    inputs = texts_of(20)
    encode_inputs(LengthEncoder(), inputs, root, "item_text")
    other = LengthEncoder(version="2")
    encode_inputs(other, inputs, root, "item_text")
    assert len(other.calls) == 2


def test_run_hash_keeps_neighbouring_keys_apart():
    first = distinct_inputs([("ab", 0), ("c", 1)], {})
    second = distinct_inputs([("a", 0), ("bc", 1)], {})
    assert run_hash(LengthEncoder(), first) != run_hash(LengthEncoder(), second)
    assert run_hash(LengthEncoder(), first) == run_hash(LengthEncoder(), first)


@pytest.mark.parametrize(
    ("result", "message"),
    [(np.array([[1.0, 2.0], [np.nan, 0.0]]), r"NaN.*'tx'"), (np.zeros((2, 3)), r"shape \(2, 3\)")],
)
def test_wrong_output_of_an_encoder_is_named(root, monkeypatch, result, message):
    monkeypatch.setattr(LengthEncoder, "encode", lambda self, inputs: result)
    with pytest.raises(DatasetError, match=message):
        encode_inputs(LengthEncoder(), texts_of(2), root, "item_text")
    assert partials(root) == []


# storing


def test_stored_feature_loads_and_partials_go(root):
    inputs = text_inputs(side_table(root, "item"), "item", ["title"])
    vectors = encode_inputs(LengthEncoder(), inputs, root, "item_text")
    assert partials(root)
    feature = feature_of_inputs(
        inputs, vectors, name="text", side="item", group="modality", dtype="float16"
    )
    store_feature(root, feature)
    assert not (root / "features" / ".partial").exists()
    loaded = FeatureStore.load(root)["text"]
    assert loaded.values.dtype == np.float16
    np.testing.assert_array_equal(loaded.dense(), feature.dense())
    assert loaded.index is not None
    assert loaded.index.tolist() == inputs.index.tolist()


def test_partials_of_other_features_stay(root):
    encode_inputs(LengthEncoder(), texts_of(3), root, "item_other")
    store_feature(root, Feature("text", "item", "modality", np.ones((6, 1), dtype=np.float32)))
    assert len(partials(root)) == 1


def test_a_feature_of_which_no_row_is_known_is_refused():
    nothing = Feature("x", "item", "modality", np.ones((0, 2), np.float32), np.full(6, -1))
    with pytest.raises(DatasetError, match=r"'x'.*none of the 6 items is known"):
        check_feature(nothing, 6, "here")


def test_taken_name_needs_overwrite_which_removes_old_files(root):
    sparse = feature_of_rows(
        np.ones((6, 2)), np.eye(6, dtype=bool)[0], name="x", side="item", group="modality"
    )
    store_feature(root, sparse)
    assert (root / "features" / "item_x.index.npy").exists()
    dense = Feature("x", "item", "modality", np.eye(6, dtype=np.float32))
    with pytest.raises(DatasetError, match=r"already has a feature 'x'.*--overwrite"):
        store_feature(root, dense)
    store_feature(root, dense, overwrite=True)
    assert not (root / "features" / "item_x.index.npy").exists()
    np.testing.assert_array_equal(FeatureStore.load(root)["x"].dense(), np.eye(6))


def test_feature_of_all_distinct_rows_has_no_index():
    inputs = texts_of(3)
    vectors = LengthEncoder().encode(inputs.values)
    feature = feature_of_inputs(inputs, vectors, name="t", side="item", group="modality")
    assert feature.index is None


def test_values_too_large_for_float16_are_refused():
    with pytest.raises(DatasetError, match=r"7e\+04, more than float16.*--dtype float32"):
        cast(np.array([[1.0], [-70000.0]]), "float16")
    assert cast(np.array([[-70000.0]]), "float32").dtype == np.float32


def test_ids_are_text(root):
    assert original_ids(side_table(root, "user"), "user") == ["u1", "u2", "u3"]
