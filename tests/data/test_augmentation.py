from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from llmrec_pl.data.augmentation import (
    content_id_of,
    load_augmentation,
    read_manifest,
    write_augmentation,
)
from llmrec_pl.data.augmentation_edges import invalid_edges
from llmrec_pl.data.dataset import InteractionDataset, sha256_file
from llmrec_pl.data.features import Feature
from llmrec_pl.errors import AugmentationError

# user 0 has items 0 and 1 in train, user 1 has item 2, user 2 nothing
DATASET = InteractionDataset.from_edges("tiny", 3, 5, np.array([[0, 0, 1], [0, 1, 2]]))
PROVENANCE = {"provider": "test", "model": "none", "prompt_set": "none", "store": None}
EDGES = np.array([[2, 0], [0, 2], [1, 3]])


def profile(missing: int = 1) -> Feature:
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    return Feature("profile", "user", "profile", values[missing:], np.array([-1, 0, 1]))


def director() -> Feature:
    values = np.array([[1, 2], [3, 4]], dtype=np.float16)
    return Feature("item_director", "item", "attribute", values, np.array([0, 1, 0, -1, 1]))


def write(path: Path, **changes):
    parts = {"edges": EDGES, "features": [profile(), director()], "manifest": PROVENANCE}
    return write_augmentation(path, DATASET, **{**parts, **changes})


def reseal(path: Path) -> None:
    """Bring the hashes of a changed folder up to date, as a wrong exporter would write them."""
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"] = {name: sha256_file(path / name) for name in manifest["files"]}
    manifest["content_id"] = content_id_of(manifest["files"])
    (path / "manifest.json").write_text(json.dumps(manifest))


def change_tensors(path: Path, file: str, **tensors) -> None:
    """Replace tensors of a file; None removes one."""
    kept = {**load_file(path / file), **{k.replace("__", "."): v for k, v in tensors.items()}}
    save_file({k: v for k, v in kept.items() if v is not None}, path / file)
    reseal(path)


def test_what_is_written_is_read(tmp_path):
    written = write(tmp_path / "a")
    loaded = load_augmentation(tmp_path / "a", DATASET)
    assert loaded.edges.tolist() == [[0, 2], [2, 0], [3, 1]]  # sorted by user
    assert loaded.content_id == written.content_id == read_manifest(tmp_path / "a")["content_id"]
    assert loaded.dropped == {}
    by_name = {f.name: f for f in loaded.features}
    assert {n: (f.side, f.group) for n, f in by_name.items()} == {
        "user_profile": ("user", "profile"),
        "item_director": ("item", "attribute"),
    }
    np.testing.assert_array_equal(by_name["user_profile"].dense(), profile().dense())
    np.testing.assert_array_equal(by_name["item_director"].dense(), director().dense())
    assert by_name["item_director"].values.dtype == np.float16
    assert by_name["item_director"].info["model"] == "none"


def test_manifest_counts_and_fields(tmp_path):
    edges = np.array([[0, 0, 2], [0, 2, 1], [2, 3, 0]])
    manifest = write(
        tmp_path / "a", edges=edges, manifest={**PROVENANCE, "counts": {"sent": 9}}
    ).manifest
    assert manifest["counts"] == {
        "sent": 9,
        "edges": 3,
        "users_with_edges": 2,
        "positives_in_train": 1,
    }
    assert manifest["dataset_fp"] == DATASET.fingerprint
    assert manifest["fields"]["item_director"] == {
        "side": "item",
        "rows": 5,
        "known": 4,
        "distinct": 2,
        "dim": 2,
        "dtype": "float16",
    }


rows = st.lists(
    st.none() | st.tuples(st.sampled_from([-1.0, 0.0, 2.0]), st.sampled_from([0.5, 1.0])),
    min_size=5,
    max_size=5,
).filter(lambda r: any(v is not None for v in r))
valid_edges = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(0, 4)).filter(
        lambda e: e[1] != e[2] and not DATASET.train[e[0], e[2]]
    ),
    max_size=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(rows=rows, edges=valid_edges, form=st.sampled_from(["mask", "index"]))
def test_export_and_load_round_trip(tmp_path, rows, edges, form):
    folder = tmp_path / "a"
    dense = np.array([[0.0, 0.0] if r is None else r for r in rows], dtype=np.float32)
    known = np.array([r is not None for r in rows])
    place = np.where(known, np.cumsum(known) - 1, -1)
    feature = Feature("country", "item", "attribute", dense[known], place)
    triples = np.array(edges, dtype=np.int64).reshape(-1, 3).T
    write(folder, edges=triples, features=[feature], overwrite=True)
    if form == "mask":  # the other way to say the same
        tensors = {"country": dense, "country__mask": known, "country__index": None}
        change_tensors(folder, "item_embed.safetensors", **tensors)
    loaded = load_augmentation(folder, DATASET)
    assert sorted(map(tuple, loaded.edges.T.tolist())) == sorted(edges)
    (found,) = loaded.features
    np.testing.assert_array_equal(found.dense(), dense)
    index = np.arange(5) if found.index is None else found.index
    np.testing.assert_array_equal(index >= 0, known)


def test_equal_content_gives_equal_bytes(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b", edges=EDGES[:, ::-1], features=[director(), profile()])
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "b").iterdir())
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_non_contiguous_arrays_are_written_right(tmp_path):
    values = np.arange(10, dtype=np.float32).reshape(2, 5).T
    feature = Feature("x", "item", "attribute", values)
    loaded = write(tmp_path / "a", features=[feature])
    np.testing.assert_array_equal(loaded.features[0].dense(), values)


def test_attachments_are_kept_and_hashed(tmp_path):
    texts = tmp_path / "p.jsonl"
    texts.write_text("{}\n")
    plain = write(tmp_path / "a")
    more = write(tmp_path / "b", attachments={"profiles.jsonl": texts})
    assert (tmp_path / "b" / "profiles.jsonl").read_text() == "{}\n"
    assert more.content_id != plain.content_id
    (tmp_path / "b" / "profiles.jsonl").write_text("{ }\n")
    with pytest.raises(AugmentationError, match=r"profiles\.jsonl.*damaged"):
        load_augmentation(tmp_path / "b", DATASET)


def test_without_features_or_edges(tmp_path):
    loaded = write(tmp_path / "a", edges=np.zeros((3, 0)), features=[])
    assert loaded.edges.shape == (3, 0)
    assert loaded.features == []


def naive_reason(user, pos, neg):
    if not 0 <= user < 3:
        return "unknown_user"
    if not (0 <= pos < 5 and 0 <= neg < 5):
        return "unknown_item"
    if pos == neg:
        return "same_item"
    if (user, neg) in {(0, 0), (0, 1), (1, 2)}:
        return "negative_in_train"
    return None


triple = st.tuples(st.integers(-1, 4), st.integers(-1, 6), st.integers(-1, 6))


@given(st.lists(triple, max_size=25))
def test_validation_equals_a_naive_loop(edges):
    found = invalid_edges(np.array(edges, dtype=np.int64).reshape(-1, 3).T, DATASET)
    reasons = [
        next((reason for reason, mask in found.items() if mask[i]), None) for i in range(len(edges))
    ]
    assert reasons == [naive_reason(*edge) for edge in edges]
    assert all(mask.any() for mask in found.values())


BAD = np.array([[2, 0, 0, 7, 1, 0], [0, 3, 2, 0, 9, 2], [1, 0, 2, 1, 0, 1]])


def folder_with_bad_edges(tmp_path: Path) -> Path:
    write(tmp_path / "a")
    columns = {k: np.ascontiguousarray(BAD[i]) for i, k in enumerate(("user", "pos", "neg"))}
    change_tensors(tmp_path / "a", "pairs.safetensors", **columns)
    return tmp_path / "a"


def test_bad_edges_are_counted_and_shown(tmp_path):
    with pytest.raises(AugmentationError) as caught:
        load_augmentation(folder_with_bad_edges(tmp_path), DATASET)
    message = str(caught.value)
    assert message.startswith("5 of 6 edges")
    assert "1 name a user outside the data set (first: edge 3, user number 7 of 3" in message
    assert (
        "1 name an item outside the catalogue (first: edge 4, user '1', positive number 9"
        in message
    )
    assert "1 have the same item as positive and negative (first: edge 2" in message
    assert "2 have a negative that the user has in train (first: edge 1, user '0'" in message
    assert "negative '0')" in message


def test_bad_edges_can_be_dropped_with_counts(tmp_path):
    loaded = load_augmentation(folder_with_bad_edges(tmp_path), DATASET, invalid="drop")
    assert loaded.edges.T.tolist() == [[2, 0, 1]]
    assert loaded.dropped == {
        "unknown_user": 1,
        "unknown_item": 1,
        "same_item": 1,
        "negative_in_train": 2,
    }


def test_writer_refuses_bad_edges_and_leaves_nothing(tmp_path):
    with pytest.raises(AugmentationError, match="5 of 6 edges"):
        write(tmp_path / "a", edges=BAD)
    assert list(tmp_path.iterdir()) == []


def test_other_data_set_is_refused_by_name(tmp_path):
    write(tmp_path / "a")
    other = InteractionDataset.from_edges("other", 3, 5, np.array([[0], [0]]))
    with pytest.raises(AugmentationError) as caught:
        load_augmentation(tmp_path / "a", other)
    for part in ("'tiny'", DATASET.fingerprint[:12], "'other'", other.fingerprint[:12]):
        assert part in str(caught.value)


def test_damage_is_found(tmp_path):
    write(tmp_path / "a")
    file = tmp_path / "a" / "pairs.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(AugmentationError, match=r"pairs\.safetensors.*damaged or edited"):
        load_augmentation(tmp_path / "a", DATASET)
    file.write_bytes(bytes(content[:40]))
    with pytest.raises(AugmentationError, match=r"cannot read.*pairs\.safetensors"):
        load_augmentation(tmp_path / "a", DATASET, verify=False)
    file.unlink()
    with pytest.raises(AugmentationError, match=r"pairs\.safetensors.*missing"):
        load_augmentation(tmp_path / "a", DATASET)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "format 99, this version reads 1"),
        ({"content_id": "0" * 64}, "content_id.*the manifest was edited"),
        ({"model": None}, r"lacks \['model'\]"),
        ({"files": {"../x": "0"}}, "plain file names"),
    ],
)
def test_wrong_manifest_is_refused(tmp_path, change, message):
    write(tmp_path / "a")
    file = tmp_path / "a" / "manifest.json"
    manifest = {**json.loads(file.read_text()), **change}
    file.write_text(json.dumps({k: v for k, v in manifest.items() if v is not None}))
    with pytest.raises(AugmentationError, match=message):
        read_manifest(tmp_path / "a")


def test_no_manifest_or_no_json(tmp_path):
    with pytest.raises(AugmentationError, match=r"no augmentation at.*convert"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(AugmentationError, match="not valid JSON"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"director": np.array([[np.nan, 1], [3, 4]], np.float16)}, r"NaN.*item 0.*Mask"),
        ({"director": np.zeros((2, 2))}, r"is float64 \[2, 2\]"),
        ({"director": np.zeros(2, np.float32)}, r"is float32 \[2\]"),
        ({"director__index": np.array([0, 1, 0, -1, 2])}, "points outside its 2 rows"),
        ({"director__index": np.array([0, 1])}, "expected 2 dimensions and 5 items"),
        ({"director__index": np.full(5, -1)}, "unknown for all 5 items"),
        ({"director__index": np.zeros(5, np.int32)}, r"index int32 \[5\]"),
        ({"director__mask": np.ones(2, bool)}, "both a mask and an index"),
        ({"director__mask": np.ones(3, bool), "director__index": None}, r"mask bool \[3\]"),
        ({"director": None}, "fits no field"),
        ({"director__extra": np.ones(2, bool)}, "'director.extra'.*fits no field"),
    ],
)
def test_wrong_field_is_refused(tmp_path, tensors, message):
    write(tmp_path / "a")
    change_tensors(tmp_path / "a", "item_embed.safetensors", **tensors)
    with pytest.raises(AugmentationError, match=message):
        load_augmentation(tmp_path / "a", DATASET)


def test_masked_rows_may_hold_anything(tmp_path):
    write(tmp_path / "a")
    values = np.array([[1, 2], [np.nan, 0], [5, 6], [7, 8], [9, 9]], dtype=np.float32)
    tensors = {
        "director": values,
        "director__mask": np.array([True, False, True, True, True]),
        "director__index": None,
    }
    change_tensors(tmp_path / "a", "item_embed.safetensors", **tensors)
    feature = next(
        f for f in load_augmentation(tmp_path / "a", DATASET).features if f.side == "item"
    )
    assert feature.n_missing == 1
    np.testing.assert_array_equal(feature.dense()[1], [0, 0])


@pytest.mark.parametrize(
    "columns",
    [
        {"user": None},
        {"user": np.zeros(2, np.int32)},
        {"user": np.zeros(3, np.int64)},
        {"user": np.zeros((2, 1), np.int64)},
        {"weight": np.zeros(2, np.int64)},
    ],
)
def test_wrong_columns_are_refused(tmp_path, columns):
    write(tmp_path / "a")
    change_tensors(tmp_path / "a", "pairs.safetensors", **columns)
    with pytest.raises(AugmentationError, match=r"expected \['user', 'pos', 'neg'\]"):
        load_augmentation(tmp_path / "a", DATASET)


def test_place_that_is_taken(tmp_path):
    first = write(tmp_path / "a")
    with pytest.raises(AugmentationError, match="--overwrite"):
        write(tmp_path / "a", features=[])
    second = write(tmp_path / "a", features=[], overwrite=True)
    assert second.content_id != first.content_id
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(AugmentationError, match="is no augmentation"):
        write(tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_failure_leaves_the_old_one(tmp_path, monkeypatch):
    first = write(tmp_path / "a")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full_disk)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "a", features=[], overwrite=True, attachments={"x": Path(__file__)})
    assert load_augmentation(tmp_path / "a", DATASET).content_id == first.content_id
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ({"provider": "x", "model": "y"}, r"lacking \['prompt_set'\]"),
        ({**PROVENANCE, "dataset_fp": "0"}, r"got \['dataset_fp'\]"),
    ],
)
def test_manifest_of_the_caller_is_checked(tmp_path, manifest, message):
    with pytest.raises(AugmentationError, match=message):
        write(tmp_path / "a", manifest=manifest)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (
            [profile(), dataclasses.replace(profile(), name="user_profile")],
            "'profile'.*given twice",
        ),
        ([dataclasses.replace(profile(), name="a.b")], "'a.b'.*is no name"),
        ([dataclasses.replace(profile(), index=np.array([0, 1]))], "expected 2 dimensions and 3"),
    ],
)
def test_writer_checks_fields(tmp_path, features, message):
    with pytest.raises(AugmentationError, match=message):
        write(tmp_path / "a", features=features)
