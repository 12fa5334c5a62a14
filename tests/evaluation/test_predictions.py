from __future__ import annotations

import json

import lightning as L
import numpy as np
import polars as pl
import pytest
import torch

from llmrec_pl.data.datamodule import RecDataModule
from llmrec_pl.data.prepare import Protocol, prepare_dataset
from llmrec_pl.data.sources.base import RawDataset
from llmrec_pl.errors import ConfigError
from llmrec_pl.evaluation.predictions import PredictionWriter
from llmrec_pl.models.mf import MF
from tests.evaluation.two_processes import run_in_two_processes

N_USERS, N_ITEMS = 13, 25
TITLES = ['Film, "cut" é', "[safe]", "Two\nlines", None, *(f"Film {i}" for i in range(4, N_ITEMS))]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """13 users with 3 train, 4 validation and 1 test item; user 12 has 20 train items."""
    rng = np.random.default_rng(1)
    rows = []
    for user in range(N_USERS):
        liked = rng.permutation(N_ITEMS)
        n_train = 20 if user == 12 else 3
        splits = ["train"] * n_train + ["val"] * 4 + ["test"]
        items = liked[: len(splits)]
        rows += [(f"u{user:02d}", f"m{i:02d}", s) for i, s in zip(items, splits, strict=True)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "split"], orient="row")
    ids = [f"m{i:02d}" for i in range(N_ITEMS)]
    raw = RawDataset(
        "tiny",
        frame,
        items=pl.DataFrame({"item_id": ids, "title": TITLES}),
        fixed_catalogue=True,
        given_splits=("train", "val", "test"),
    )
    out = tmp_path_factory.mktemp("data") / "tiny"
    prepare_dataset(raw, out, Protocol(split="given"))
    return out


def predict(root, folder, writer, *, eval_batch_size=5, shift=0.0, **arguments):
    data = RecDataModule(str(root), eval_batch_size=eval_batch_size)
    model = MF(embedding_dim=4)
    model.build_seeded(data.dataset, data.features, 0)
    generator = torch.Generator().manual_seed(0)
    for weight in (model.user_embedding.weight, model.item_embedding.weight):
        weight.data = torch.randint(-2, 3, weight.shape, generator=generator).float()
    model.user_embedding.weight.data[0, 0] += shift
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[writer],
        **({"devices": 1} | arguments),
    )
    returned = trainer.predict(model, datamodule=data)
    return model, data.dataset, returned


@pytest.fixture(scope="module")
def predicted(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    writer = PredictionWriter(k=6, n_candidates=10)
    model, dataset, _ = predict(root, folder, writer)
    assert writer.folder == folder / "predictions"
    return model, dataset, writer.folder


def naive_lists(model, dataset, k, *, with_val):
    encoded = model.encode()
    scores = (encoded.user @ encoded.item.T).detach().numpy()
    known = dataset.train.toarray() | (dataset.val.toarray() if with_val else False)
    for user in range(dataset.n_users):
        items = [i for i in range(dataset.n_items) if not known[user, i]]
        best = sorted(items, key=lambda i: (-scores[user, i], i))[:k]
        for rank, item in enumerate(best, 1):
            yield user, rank, item, float(scores[user, item])


@pytest.mark.parametrize(
    ("file", "k", "with_val"), [("top_k.parquet", 6, True), ("candidates.parquet", 10, False)]
)
def test_lists_equal_a_sort_of_what_may_be_shown(predicted, file, k, with_val):
    model, dataset, folder = predicted
    frame = pl.read_parquet(folder / file)
    expected = list(naive_lists(model, dataset, k, with_val=with_val))
    assert list(frame.select("user", "rank", "item", "score").iter_rows()) == expected


def test_lists_hold_nothing_known_and_pools_may_hold_validation_items(predicted):
    _, dataset, folder = predicted
    lists = pl.read_parquet(folder / "top_k.parquet")
    pools = pl.read_parquet(folder / "candidates.parquet")
    train, val = dataset.train.toarray(), dataset.val.toarray()
    assert not (train | val)[lists["user"], lists["item"]].any()
    assert not train[pools["user"], pools["item"]].any()
    assert val[pools["user"], pools["item"]].any()
    assert val[pools["user"], pools["item"]].sum() < len(pools)


def test_every_user_is_present_once_also_with_few_items_left(predicted):
    _, _, folder = predicted
    frame = pl.read_parquet(folder / "top_k.parquet")
    sizes = frame.group_by("user", maintain_order=True).len()
    assert sizes["user"].to_list() == list(range(N_USERS))
    assert sizes["len"].to_list() == [6] * 12 + [1]
    assert not frame.select("user", "rank").is_duplicated().any()
    assert not frame.select("user", "item").is_duplicated().any()


def test_original_ids_and_titles(predicted):
    _, _, folder = predicted
    for file in ("top_k.parquet", "candidates.parquet"):
        frame = pl.read_parquet(folder / file)
        assert set(frame["item"]) >= {0, 1, 2, 3}, "the case needs the odd titles"
        for user, user_id, item, item_id, title in frame.select(
            "user", "user_id", "item", "item_id", "title"
        ).iter_rows():
            assert user_id == f"u{user:02d}"
            assert item_id == f"m{item:02d}"
            assert title == (TITLES[item] or item_id)


def test_csv_has_the_content_of_the_parquet_file(predicted):
    _, _, folder = predicted
    parquet = pl.read_parquet(folder / "top_k.parquet")
    csv = pl.read_csv(folder / "top_k.csv", schema=parquet.schema)
    assert csv.equals(parquet)


def test_batch_size_and_tile_change_nothing(predicted, root, tmp_path):
    writer = PredictionWriter(k=6, n_candidates=10, out=str(tmp_path / "out"), item_tile=4)
    predict(root, tmp_path, writer, eval_batch_size=2)
    assert writer.folder == tmp_path / "out"
    for file in ("top_k.parquet", "candidates.parquet"):
        assert pl.read_parquet(tmp_path / "out" / file).equals(pl.read_parquet(predicted[2] / file))
    again = (tmp_path / "out" / "predictions.json").read_text("utf-8")
    assert again == (predicted[2] / "predictions.json").read_text("utf-8")


def test_fingerprint_changes_with_one_weight_only(predicted, root, tmp_path):
    model, dataset, folder = predicted
    record = json.loads((folder / "predictions.json").read_text("utf-8"))
    assert record["model_fingerprint"] == model.fingerprint()
    assert record["dataset_fingerprint"] == dataset.fingerprint
    assert record["masked_in_candidates"] == ["train"]
    writer = PredictionWriter(k=6, n_candidates=10)
    predict(root, tmp_path, writer, shift=1e-6)
    other = json.loads((writer.folder / "predictions.json").read_text("utf-8"))
    assert other["model_fingerprint"] != record["model_fingerprint"]
    assert other | {"model_fingerprint": ""} == record | {"model_fingerprint": ""}


def test_no_pool_is_written_unless_asked_for(root, tmp_path):
    predict(root, tmp_path, PredictionWriter(k=2, n_candidates=0))
    files = sorted(p.name for p in (tmp_path / "predictions").iterdir())
    assert files == ["predictions.json", "top_k.csv", "top_k.parquet"]


def test_batches_are_not_kept_beside_the_files(root, tmp_path):
    *_, returned = predict(root, tmp_path, PredictionWriter(k=2))
    assert not returned


def test_lists_longer_than_the_catalogue_are_an_error(root, tmp_path):
    with pytest.raises(ConfigError, match="must not exceed the 25 items"):
        predict(root, tmp_path, PredictionWriter(k=26))
    with pytest.raises(ConfigError, match="must not exceed the 25 items"):
        predict(root, tmp_path, PredictionWriter(k=2, n_candidates=26))


@pytest.mark.parametrize("arguments", [{"k": 0}, {"n_candidates": -1}, {"item_tile": 0}])
def test_settings_out_of_range_are_errors(arguments):
    with pytest.raises(ConfigError, match=f"predictions.{next(iter(arguments))}"):
        PredictionWriter(**arguments)


TWO_PROCESSES = """
import sys
import torch
from test_predictions import PredictionWriter, predict

if __name__ == "__main__":
    writer = PredictionWriter(k=6, n_candidates=10)
    predict(sys.argv[1], sys.argv[2], writer, devices=2, strategy="ddp")
    # Else gloo's threads may abort the process at its exit.
    torch.distributed.destroy_process_group()
"""


@pytest.mark.ddp
def test_two_processes_write_the_lists_of_one(predicted, root, tmp_path):
    run_in_two_processes(TWO_PROCESSES, tmp_path, root, tmp_path)
    for file in ("top_k.parquet", "candidates.parquet"):
        found = pl.read_parquet(tmp_path / "predictions" / file)
        assert found.equals(pl.read_parquet(predicted[2] / file))
