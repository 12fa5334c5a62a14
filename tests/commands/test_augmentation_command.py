from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from canonical_folder import write_folder

from llmrec_pl.cli import main
from llmrec_pl.data.augmentation import load_augmentation
from llmrec_pl.data.dataset import InteractionDataset

# ids of the tiny folder are u1..u3 and m1..m6; train is (u1, m1), (u2, m3), (u3, m5)
PAIRS = {"u1": {0: "m2", 1: "m3"}, "u3": {0: "m5", 1: "m1"}}


@pytest.fixture
def root(tmp_path):
    return write_folder(tmp_path / "tiny")


@pytest.fixture
def released(tmp_path):
    folder = tmp_path / "released"
    folder.mkdir()
    put(folder, "augmented_sample_dict", PAIRS)
    put(folder, "augmented_user_init_embedding", {f"u{i}": np.full(4, i) for i in (1, 2, 3, 9)})
    vectors = {f"m{i}": [float(i % 2), 1.0] for i in range(1, 6)}
    put(folder, "augmented_atttribute_embedding_dict", {"director": vectors, "year": dict(vectors)})
    return folder


def put(folder, name, content):
    with (folder / name).open("wb") as file:
        pickle.dump(content, file)


def convert(root, released, *options):
    out = root.parent / "out"
    main(["augmentation", "convert", *map(str, [released, "--data", root, "--out", out]), *options])
    return load_augmentation(out, InteractionDataset.load(root))


def refused(capsys, arguments) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["augmentation", *map(str, arguments)])
    assert stop.value.code == 1
    return " ".join(capsys.readouterr().err.split())


def test_convert_released_pickles(root, released, capsys):
    result = convert(root, released)
    assert result.edges.T.tolist() == [[0, 1, 2], [2, 4, 0]]
    assert result.manifest["counts"]["positives_in_train"] == 1
    assert result.manifest["provider"] == "released"
    assert result.manifest["outside"]["user_profile"] == 1
    assert len(result.manifest["sources"]["augmented_sample_dict"]) == 64
    by_name = {f.name: f for f in result.features}
    assert sorted(by_name) == ["item_director", "item_year", "user_profile"]
    np.testing.assert_array_equal(by_name["user_profile"].dense()[:, 0], [1, 2, 3])
    director = by_name["item_director"]
    assert director.index is not None
    assert director.index.tolist() == [0, 1, 0, 1, 0, -1]
    shown = capsys.readouterr().out
    assert "item_director" in shown
    assert "83.3%" in shown


def test_arrays_number_their_rows_by_original_id(tmp_path):
    """As in the release: rows 0..n-1, while the data set kept only some ids, in its own order."""
    import polars as pl

    from llmrec_pl.data.dataset import _read_ids as read_ids
    from llmrec_pl.data.dataset import _read_splits as read_splits
    from llmrec_pl.data.dataset import content_fingerprint, read_meta, write_meta

    root = write_folder(tmp_path / "tiny")
    users = {"user": [0, 1, 2], "user_id": ["4", "0", "2"]}
    pl.DataFrame(users).write_parquet(root / "users.parquet")
    ids = read_ids(root, "users.parquet", "user", 3), read_ids(root, "items.parquet", "item", 6)
    found = content_fingerprint({"split": "given"}, *ids, read_splits(root, 3, 6))
    write_meta(root, {**read_meta(root), "fingerprint": found})
    released = tmp_path / "released"
    released.mkdir()
    put(released, "augmented_user_init_embedding", np.arange(10.0).reshape(5, 2))
    put(released, "augmented_sample_dict", {np.int64(4): {0: "m2", 1: "m3"}})
    result = convert(root, released)
    (profile,) = result.features
    np.testing.assert_array_equal(profile.dense(), [[8, 9], [0, 1], [4, 5]])
    assert result.manifest["outside"] == {"user_profile": 2}
    assert result.edges.T.tolist() == [[0, 1, 2]]


def test_bad_pairs_stop_or_are_dropped_and_counted(root, released, capsys):
    bad = {
        "u2": {0: "m99", 1: "m1"},
        "u7": {0: "m1", 1: "m2"},
        "u1": {0: "m2", 1: "m1"},
        "u3": {0: "m2"},
    }
    put(released, "augmented_sample_dict", bad)
    arguments = ["convert", released, "--data", root, "--out", root.parent / "out"]
    message = refused(capsys, arguments)
    for part in ("1 of 4 unknown item (first: user 'u2': item 'm99')", "malformed", "u7", "drop"):
        assert part in message
    result = convert(root, released, "--invalid", "drop")
    assert result.edges.shape == (3, 0)
    dropped = {k: v for k, v in result.manifest["counts"].items() if k.startswith("dropped")}
    assert dropped == {
        "dropped unknown_item": 1,
        "dropped unknown_user": 1,
        "dropped negative_in_train": 1,
        "dropped malformed": 1,
    }


def test_bad_vectors_stop_or_count_as_unknown(root, released, capsys):
    vectors = {"m1": [1.0, 2.0], "m2": [np.nan, 0.0], "m3": None, "m4": [1.0]}
    put(released, "augmented_atttribute_embedding_dict", {"director": vectors})
    arguments = ["convert", released, "--data", root, "--out", root.parent / "out"]
    assert "3 entries that are no finite vectors of width 2, first for item 'm2'" in refused(
        capsys, arguments
    )
    result = convert(root, released, "--invalid", "drop")
    director = next(f for f in result.features if f.name == "item_director")
    assert director.n_missing == 5
    assert result.manifest["counts"]["dropped item_director vectors"] == 3


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("augmented_sample_dict", [1], "holds a list; expected `{user:"),
        ("augmented_user_init_embedding", 3, "is a int; expected vectors"),
        ("augmented_user_init_embedding", {"x": [1.0]}, "no vector for any user"),
        ("augmented_atttribute_embedding_dict", [1], "expected a table of attributes"),
    ],
)
def test_other_shapes_are_refused(root, released, capsys, name, content, part):
    put(released, name, content)
    arguments = ["convert", released, "--data", root, "--out", root.parent / "out"]
    assert part in refused(capsys, arguments)


def test_pickle_that_calls_code_is_refused(root, released, capsys, tmp_path):
    class Evil:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'owned')!r}, 'w')",))

    put(released, "augmented_sample_dict", Evil())
    assert refused(capsys, ["convert", released, "--data", root, "--out", root.parent / "out"])
    assert not (tmp_path / "owned").exists()


def test_empty_source_is_refused(root, tmp_path, capsys):
    message = refused(capsys, ["convert", tmp_path, "--data", root, "--out", tmp_path / "out"])
    assert "holds none of" in message
    assert "augmented_sample_dict" in message


def test_existing_output_needs_overwrite(root, released, capsys):
    convert(root, released)
    arguments = ["convert", released, "--data", root, "--out", root.parent / "out"]
    assert "--overwrite" in refused(capsys, arguments)
    convert(root, released, "--overwrite")


def test_show(root, released, capsys):
    out = convert(root, released).path
    capsys.readouterr()
    main(["augmentation", "show", str(out), "--data", str(root)])
    shown = capsys.readouterr().out
    for part in ("tiny", "released", "llmrec-2024", "edges", "item_director", "fits the data set"):
        assert part in shown


def test_show_of_another_data_set_is_refused(root, released, capsys, tmp_path):
    out = convert(root, released).path
    other = write_folder(tmp_path / "other", {"title": ["a", "b", "c"]})
    assert "fingerprint" in refused(capsys, ["show", out, "--data", other])


def test_show_of_a_damaged_one_is_refused(root, released, capsys):
    out = convert(root, released).path
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["files"]["pairs.safetensors"] = "0" * 64
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert "damaged or edited" in refused(capsys, ["show", out])
