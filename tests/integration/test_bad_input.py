"""Each mistake gives one clear error that names the remedy, and a status that is not 0."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from safetensors.numpy import save_file

from llmrec_pl.cli import main
from llmrec_pl.data.augmentation import content_id_of, load_augmentation
from llmrec_pl.data.dataset import (
    InteractionDataset,
    content_fingerprint,
    edges_to_csr,
    sha256_file,
)

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def fail(capsys, monkeypatch):
    """Run a command that must fail; return what it wrote to standard error."""
    # Lightning's log handler keeps the stream of an earlier test.
    monkeypatch.setattr(logging, "raiseExceptions", False)

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in arguments])
        assert stop.value.code not in (0, None)
        error = capsys.readouterr().err
        assert "Traceback" not in error
        return error

    return run


@pytest.fixture
def data(small_data, tmp_path):
    """A copy of the small data set that a test may damage."""
    return Path(shutil.copytree(small_data, tmp_path / "data"))


@pytest.fixture
def fit(tmp_path):
    """Arguments of a short training run on a data folder."""

    def arguments(root, *more):
        return [
            *("fit", "--config", str(CONFIGS / "ml-100k.yaml")),
            *("--config", str(CONFIGS / "models/mf.yaml"), "--data.root", str(root)),
            *("--trainer.max_epochs", "1", "--trainer.default_root_dir", str(tmp_path / "runs")),
            *("--trainer.accelerator", "cpu", *map(str, more)),
        ]

    return arguments


def rehash(root, file):
    """Let `dataset.json` agree with an edited file, so that later checks are reached."""
    path = root / "dataset.json"
    meta = json.loads(path.read_text())
    if file in meta["files"]:
        meta["files"][file] = sha256_file(root / file)
    for entry in meta["features"].values():
        for place, name in enumerate(entry["files"]):
            if f"features/{name}" == file:
                entry["sha256"][place] = sha256_file(root / file)
    path.write_text(json.dumps(meta))


def test_unknown_key_in_a_config(data, fit, fail, tmp_path):
    config = tmp_path / "typo.yaml"
    config.write_text(yaml.safe_dump({"model": {"init_args": {"embeding_dim": 8}}}))
    in_file = fail(*fit(data, "--config", config))
    assert f"unknown key `model.init_args.embeding_dim` in {str(config)!r}; did you mean" in in_file
    assert "`llmrec_pl.models.mf.MF` takes embedding_dim, " in in_file
    typed = fail(*fit(data, "--data.batchsize", 3))
    assert "`--data.batchsize` on the command line; did you mean `--data.batch_size`?" in typed
    assert "--help` lists all keys" in typed
    for error in (in_file, typed):
        assert len(error.splitlines()) == 1


def test_a_value_of_the_wrong_kind_is_told_in_one_line(data, fit, fail):
    error = fail(*fit(data, "--data.batch_size", "many"))
    assert "data.batch_size" in error
    assert "many" in error
    assert len(error.splitlines()) == 1


def test_missing_config_and_invalid_yaml(data, fit, fail, tmp_path):
    assert "nowhere.yaml" in fail(*fit(data, "--config", tmp_path / "nowhere.yaml"))
    bad = tmp_path / "bad.yaml"
    bad.write_text("model: [unclosed")
    assert "not valid YAML" in fail(*fit(data, "--config", bad))


def test_missing_data_folder_names_prepare(fit, fail, tmp_path):
    error = fail(*fit(tmp_path / "absent"))
    assert "absent" in error
    assert "prepare" in error


def test_missing_file(data, fit, fail):
    (data / "items.parquet").unlink()
    assert "items.parquet" in fail(*fit(data))


@pytest.mark.parametrize("recorded", [False, True])
def test_truncated_parquet(data, fit, fail, recorded):
    path = data / "interactions.parquet"
    path.write_bytes(path.read_bytes()[:300])
    if recorded:
        rehash(data, path.name)
    error = fail(*fit(data))
    assert "interactions.parquet" in error
    assert "prepare" in error


def test_id_out_of_range(data, fit, fail):
    path = data / "interactions.parquet"
    frame = pl.read_parquet(path)
    n_items = InteractionDataset.load(data).n_items
    frame = frame.with_columns(
        item=pl.when(pl.int_range(pl.len()) == 5).then(n_items).otherwise("item").cast(pl.Int32)
    )
    frame.write_parquet(path)
    rehash(data, path.name)
    error = fail(*fit(data))
    assert f"item {n_items}" in error
    assert f"n_items={n_items}" in error


def test_edited_interactions_do_not_pass_for_the_old_data(data, fit, fail):
    path = data / "interactions.parquet"
    pl.read_parquet(path).slice(1).write_parquet(path)
    rehash(data, path.name)
    assert "fingerprint" in fail(*fit(data))


def test_nan_in_a_feature(data, fit, fail):
    path = data / "features" / "item_text.npy"
    values = np.load(path)
    values[3, 1] = np.nan
    np.save(path, values)
    rehash(data, "features/item_text.npy")
    error = fail(*fit(data))
    assert "'text'" in error
    assert "row 3" in error


def empty_split(root, split):
    """Move a split's interactions to train, with a fingerprint that fits."""
    path = root / "interactions.parquet"
    frame = pl.read_parquet(path).with_columns(split=pl.col("split").replace(split, "train"))
    frame.write_parquet(path)
    rehash(root, path.name)
    meta = json.loads((root / "dataset.json").read_text())
    loaded = {
        s: edges_to_csr(
            *(frame.filter(split=s)[c].to_numpy() for c in ("user", "item")),
            meta["n_users"],
            meta["n_items"],
        )
        for s in ("train", "val", "test")
    }
    ids = [
        np.array(pl.read_parquet(root / f"{s}s.parquet").sort(s)[f"{s}_id"].to_list())
        for s in ("user", "item")
    ]
    meta["fingerprint"] = content_fingerprint(meta["protocol"], *ids, loaded)
    (root / "dataset.json").write_text(json.dumps(meta))


def test_empty_validation_and_test_split(data, fit, fail, tmp_path):
    empty_split(data, "test")
    main(fit(data))
    checkpoint = next((tmp_path / "runs").rglob("best.ckpt"))
    config = checkpoint.parents[1] / "config.yaml"
    error = fail("test", "--config", config, "--ckpt_path", checkpoint)
    assert "'test'" in error
    assert "prepare" in error
    empty_split(data, "val")
    assert "'val'" in fail(*fit(data))


@pytest.mark.parametrize("rate", ["-0.1", "1.5"])
def test_llm_edge_rate_outside_its_range(data, fit, fail, rate):
    error = fail(*fit(data, "--data.llm_edge_rate", rate))
    assert "llm_edge_rate" in error
    assert "[0, 1]" in error


def test_k_larger_than_the_catalogue(data, fit, fail, tmp_path):
    error = fail(*fit(data, "--evaluation.ks", "[20,100000]"))
    assert "100000" in error
    assert "--evaluation.ks" in error
    assert not [p for p in (tmp_path / "runs").rglob("*") if p.is_file()]
    assert not list((tmp_path / "runs").rglob("version_*"))


def test_monitor_that_is_not_computed(data, fit, fail):
    error = fail(*fit(data, "--evaluation.ks", "[5]"))
    assert "val/recall@20" in error
    assert "evaluation.ks" in error


def test_missing_checkpoint(data, fit, fail, tmp_path):
    assert "none.ckpt" in fail(*fit(data, "--ckpt_path", tmp_path / "none.ckpt"))
    arguments = fit(data)
    arguments[0] = "test"
    assert "--ckpt_path" in fail(*arguments)


def test_a_checkpoint_of_another_program(data, fit, fail, tmp_path):
    path = tmp_path / "foreign.ckpt"
    torch.save({"state_dict": {}}, path)
    assert "not written by llmrec_pl" in fail(*fit(data, "--ckpt_path", path))
    assert "not written by llmrec_pl" in fail("recommend", "--ckpt_path", path, "--random", "1")
    assert "path of a checkpoint" in fail(*fit(data, "--ckpt_path", "best"))


def test_evaluating_with_another_model_than_was_trained(data, fit, fail, tmp_path):
    main(fit(data, "--config", CONFIGS / "models/lightgcn.yaml"))
    checkpoint = next((tmp_path / "runs").rglob("best.ckpt"))
    config = checkpoint.parents[1] / "config.yaml"
    common = ("--config", config, "--ckpt_path", checkpoint)
    error = fail("validate", *common, "--model.init_args.n_layers", "0")
    assert "n_layers" in error
    main(
        [
            "features",
            str(data),
            "--text",
            "genres",
            "--encoder",
            "tfidf",
            "--dim",
            "8",
            "--overwrite",
        ]
    )
    assert "features" in fail("test", *common)
    assert "features" in fail("recommend", "--ckpt_path", checkpoint, "--random", "1")


def test_a_folder_that_cannot_be_made(fail):
    assert "/proc" in fail("prepare", "simulated", "--out", "/proc/none/data")


def test_dropped_llm_edges_are_counted_on_the_screen(small_data, data, fit, capsys):
    dataset = InteractionDataset.load(small_data)
    given = load_augmentation(small_data.parent / "augmentation", dataset)
    edges = given.edges.copy()
    edges[2, :7] = dataset.n_items + 1
    folder = data.parent / "damaged"
    shutil.copytree(given.path, folder, dirs_exist_ok=True)
    save_file({"user": edges[0], "pos": edges[1], "neg": edges[2]}, folder / "pairs.safetensors")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["pairs.safetensors"] = sha256_file(folder / "pairs.safetensors")
    manifest["content_id"] = content_id_of(manifest["files"])
    (folder / "manifest.json").write_text(json.dumps(manifest))
    main(fit(data, "--data.augmentation", folder, "--data.invalid", "drop"))
    assert "invalid edges dropped: 7" in capsys.readouterr().out


def test_augmentation_of_other_data(small_data, data, fit, fail):
    meta = json.loads((data / "dataset.json").read_text())
    main(["prepare", "simulated", "--out", str(data), "--seed", "9", "--overwrite"])
    error = fail(*fit(data, "--data.augmentation", small_data.parent / "augmentation"))
    assert meta["fingerprint"][:12] in error


def test_unknown_feature_to_exclude(data, fit, fail):
    error = fail(*fit(data, "--data.exclude_features", "[txt]"))
    assert "'txt'" in error
    assert "text" in error


def test_random_seed_is_refused(data, fit, fail):
    assert "seed_everything" in fail(*fit(data, "--seed_everything", "true"))


def test_unknown_command(fail):
    assert "'fti'" in fail("fti")


def test_the_test_split_stays_sealed_while_fitting(data):
    dataset = InteractionDataset.load(data)
    with pytest.raises(ValueError, match="sealed"):
        _ = dataset.test
