from __future__ import annotations

import json
import math

import lightning as L
import numpy as np
import polars as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from llmrec_pl.data.datamodule import RecDataModule
from llmrec_pl.data.prepare import Protocol, prepare_dataset
from llmrec_pl.data.sources.base import RawDataset
from llmrec_pl.errors import ConfigError, DatasetError
from llmrec_pl.evaluation.callback import AllRankingEvaluator, run_directory
from llmrec_pl.evaluation.groups import item_groups
from llmrec_pl.models.mf import MF
from tests.evaluation.two_processes import run_in_two_processes

N_USERS, N_ITEMS, KS = 30, 40, [1, 5, 20]
USERS_WITH = {"val": 20, "test": 25}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """30 users: users 0..19 have validation items, 5..29 have test items; no train on 36..39."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(N_USERS):
        # Together the users train on each of the items 0..35.
        own = {user, 30 + user % 6}
        liked = rng.permutation(np.setdiff1d(np.arange(36), [*own]))
        held_out = [*liked[:4], *(36 + rng.permutation(4)[:2])]
        train = {*own, *liked[4 : 4 + (3 if user % 3 else 8)]}
        parts = {"train": train, "val": held_out[:3], "test": held_out[3:]}
        parts["val"] = parts["val"] if user < 20 else []
        parts["test"] = parts["test"] if user >= 5 else []
        rows += [(f"u{user:02d}", f"m{i:02d}", s) for s, items in parts.items() for i in items]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "split"], orient="row")
    items = pl.DataFrame({"item_id": [f"m{i:02d}" for i in range(N_ITEMS)]})
    raw = RawDataset(
        "tiny", frame, items=items, fixed_catalogue=True, given_splits=("train", "val", "test")
    )
    out = tmp_path_factory.mktemp("data") / "tiny"
    prepare_dataset(raw, out, Protocol(split="given"))
    return out


def make_model(seed=0):
    """MF of dimension 6; `give_integer_weights` gives it scores with many ties."""
    torch.manual_seed(seed)
    return MF(embedding_dim=6)


def give_integer_weights(model, data, seed=0):
    model.build_seeded(data.dataset, data.features, seed)
    generator = torch.Generator().manual_seed(seed)
    for weight in (model.user_embedding.weight, model.item_embedding.weight):
        weight.data = torch.randint(-2, 3, weight.shape, generator=generator).float()
    return model


def make_trainer(folder, *callbacks, **arguments):
    settings = {
        "logger": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
        "devices": 1,
    }
    return L.Trainer(
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
        **(settings | arguments),
    )


def evaluate(root, folder, stage="val", eval_batch_size=7, **arguments):
    """Evaluate integer embeddings; return the record, the model and the open data set."""
    data = RecDataModule(str(root), eval_batch_size=eval_batch_size)
    model = give_integer_weights(make_model(), data)
    evaluator = AllRankingEvaluator(**({"ks": KS} | arguments))
    trainer = make_trainer(folder, evaluator)
    run = trainer.validate if stage == "val" else trainer.test
    run(model, datamodule=data, verbose=False)
    return evaluator.results[stage], model, data.dataset


def brute_force(model, relevant, masks, ks=KS):
    """Metrics by user from all scores at once: dense, and sorted by score, then id."""
    encoded = model.encode()
    scores = (encoded.user @ encoded.item.T).detach().numpy().astype(float)
    relevant = relevant.toarray()
    for mask in masks:
        scores[mask.toarray()] = -np.inf
    values = {}
    for user in np.flatnonzero(relevant.any(1)):
        order = np.lexsort((np.arange(scores.shape[1]), -scores[user]))
        order = order[np.isfinite(scores[user][order])]
        hits, n = relevant[user][order].astype(float), int(relevant[user].sum())
        discount = 1 / np.log2(np.arange(2, len(order) + 2))
        precision = np.cumsum(hits) / np.arange(1, len(order) + 1)
        values[user] = {}
        for k in ks:
            values[user][f"recall@{k}"] = hits[:k].sum() / n
            values[user][f"ndcg@{k}"] = (hits * discount)[:k].sum() / discount[: min(n, k)].sum()
            values[user][f"map@{k}"] = (hits * precision)[:k].sum() / n
            best = discount[: min(int(hits[: max(ks)].sum()), k)].sum()
            values[user][f"released ndcg@{k}"] = (hits * discount)[:k].sum() / (best or 1)
    return values


def mean(values, name):
    return np.mean([v[name] for v in values.values()])


def names(values):
    return [n for n in next(iter(values.values())) if not n.startswith("released")]


def test_validation_removes_train_items_only(root, tmp_path):
    record, model, dataset = evaluate(root, tmp_path)
    expected = brute_force(model, dataset.val, [dataset.train])
    unmasked = brute_force(model, dataset.val, [])
    assert mean(expected, "ndcg@5") != pytest.approx(mean(unmasked, "ndcg@5"), abs=1e-3)
    for name in names(expected):
        assert record["metrics"][name] == pytest.approx(mean(expected, name), abs=1e-12), name


def test_test_removes_train_and_validation_items(root, tmp_path):
    record, model, dataset = evaluate(root, tmp_path, "test")
    expected = brute_force(model, dataset.test, [dataset.train, dataset.val])
    train_only = brute_force(model, dataset.test, [dataset.train])
    assert mean(expected, "ndcg@5") != pytest.approx(mean(train_only, "ndcg@5"), abs=1e-3)
    for name in names(expected):
        assert record["metrics"][name] == pytest.approx(mean(expected, name), abs=1e-12), name


def test_llmrec_profile_removes_train_items_only_at_test(root, tmp_path):
    record, model, dataset = evaluate(root, tmp_path, "test", profile="llmrec")
    expected = brute_force(model, dataset.test, [dataset.train])
    for k in KS:
        found = record["metrics"]
        assert found[f"recall@{k}"] == pytest.approx(mean(expected, f"recall@{k}"), abs=1e-12)
        assert found[f"ndcg@{k}"] == pytest.approx(mean(expected, f"released ndcg@{k}"), abs=1e-12)
    assert record["profile"] == "llmrec"


@pytest.mark.parametrize(
    ("eval_batch_size", "item_tile"), [(1, 3), (7, 1), (20, 40), (1000, 32_768)]
)
def test_tiles_change_nothing(root, tmp_path, eval_batch_size, item_tile):
    whole, *_ = evaluate(root, tmp_path / "a", "test")
    tiled, *_ = evaluate(
        root, tmp_path / "b", "test", eval_batch_size=eval_batch_size, item_tile=item_tile
    )
    for part in ("metrics", "exposure", "users_without_held_out_items"):
        assert tiled[part] == pytest.approx(whole[part], abs=1e-14)
    for group, values in whole["groups"].items():
        assert tiled["groups"][group] == pytest.approx(values, abs=1e-14, nan_ok=True)
    frames = [pl.read_parquet(tmp_path / f / "metrics" / "test_per_user.parquet") for f in "ab"]
    assert frames[0].equals(frames[1])


@pytest.mark.parametrize("stage", ["val", "test"])
def test_users_without_held_out_items_are_reported_and_not_counted(root, tmp_path, stage):
    record, _, dataset = evaluate(root, tmp_path, stage)
    assert record["metrics"]["users"] == USERS_WITH[stage]
    assert record["users_without_held_out_items"] == N_USERS - USERS_WITH[stage]
    assert record["metrics"]["hits@20"] <= getattr(dataset, stage).nnz


def test_number_of_users_without_held_out_items_ignores_how_many_were_ranked(root, tmp_path):
    data = RecDataModule(str(root), eval_batch_size=4)
    evaluator = AllRankingEvaluator(KS)
    trainer = make_trainer(tmp_path, evaluator, limit_val_batches=2)
    trainer.validate(make_model(), datamodule=data, verbose=False)
    assert evaluator.results["val"]["metrics"]["users"] == 8
    assert evaluator.results["val"]["users_without_held_out_items"] == 10


class EveryUser(RecDataModule):
    """Hands out all users, also those without validation items, in batches of one."""

    def val_dataloader(self):
        return self.predict_dataloader()


def test_batches_without_any_held_out_item_are_left_out(root, tmp_path):
    expected, *_ = evaluate(root, tmp_path / "a")
    data = EveryUser(str(root), eval_batch_size=1)
    model = give_integer_weights(make_model(), data)
    evaluator = AllRankingEvaluator(KS)
    make_trainer(tmp_path / "b", evaluator).validate(model, datamodule=data, verbose=False)
    assert evaluator.results["val"]["metrics"] == pytest.approx(expected["metrics"], abs=1e-14)
    frames = [pl.read_parquet(tmp_path / f / "metrics" / "val_per_user.parquet") for f in "ab"]
    assert frames[0].equals(frames[1])


def test_groups_and_exposure_equal_brute_force(root, tmp_path):
    record, model, dataset = evaluate(root, tmp_path, cold_user_max=5)
    encoded = model.encode()
    scores = (encoded.user @ encoded.item.T).detach().numpy()
    scores[dataset.train.toarray()] = -np.inf
    popularity = dataset.train.toarray().sum(0)
    groups, degree = item_groups(popularity), dataset.train.toarray().sum(1)
    recalls, shown = {name: [] for name in record["groups"]}, []
    for user in range(20):
        top = np.lexsort((np.arange(N_ITEMS), -scores[user]))[:5]
        shown += top.tolist()
        held_out = set(np.flatnonzero(dataset.val.toarray()[user]).tolist())
        parts = {
            f"{n}_items": {i for i in held_out if groups[i] == c}
            for c, n in enumerate(("cold", "tail", "mid", "head"))
        }
        parts["cold_users"] = held_out if degree[user] <= 5 else set()
        parts["warm_users"] = held_out - parts["cold_users"]
        for name, part in parts.items():
            if part:
                recalls[name].append(len(part.intersection(top.tolist())) / len(part))
    assert record["groups"]["cold_items"]["users"] == 0, "no cold item is held out for validation"
    for name, values in recalls.items():
        assert record["groups"][name]["users"] == len(values), name
        if values:
            assert record["groups"][name]["recall@5"] == pytest.approx(np.mean(values)), name
    assert len([v for v in recalls.values() if v]) == 5
    assert record["exposure"]["coverage@5"] == pytest.approx(len(set(shown)) / N_ITEMS)
    assert record["exposure"]["popularity@5"] == pytest.approx(popularity[shown].mean())


def test_cold_items_are_measured_where_they_are_held_out(root, tmp_path):
    record, *_ = evaluate(root, tmp_path, "test")
    assert record["groups"]["cold_items"]["users"] == 25


@pytest.mark.parametrize("stage", ["val", "test"])
def test_per_user_file_has_original_ids_and_the_reported_means(root, tmp_path, stage):
    record, model, dataset = evaluate(root, tmp_path, stage)
    frame = pl.read_parquet(tmp_path / "metrics" / f"{stage}_per_user.parquet")
    masks = [dataset.train, *([dataset.val] if stage == "test" else [])]
    expected = brute_force(model, getattr(dataset, stage), masks)
    assert frame["user"].to_list() == sorted(expected)
    assert frame["user_id"].to_list() == [f"u{u:02d}" for u in sorted(expected)]
    assert frame["n_relevant"].to_list() == [3] * len(expected)
    for name in names(expected):
        values = [expected[user][name] for user in sorted(expected)]
        np.testing.assert_allclose(frame[name].to_numpy(), values, atol=1e-12, err_msg=name)
        assert frame[name].mean() == pytest.approx(record["metrics"][name], abs=1e-12)


def reject_constant(name):
    raise AssertionError(f"{name} is not JSON")


def test_record_is_strict_json_with_null_for_empty_groups(root, tmp_path):
    record, *_ = evaluate(root, tmp_path)
    text = (tmp_path / "metrics" / "val.json").read_text("utf-8")
    written = json.loads(text, parse_constant=reject_constant)
    assert written["groups"]["cold_items"]["recall@5"] is None
    assert math.isnan(record["groups"]["cold_items"]["recall@5"])
    assert written["metrics"] == record["metrics"]
    assert written["data"]["name"] == "tiny"
    assert [p.name for p in (tmp_path / "metrics").iterdir() if p.suffix == ".tmp"] == []


class TriesTest(L.Callback):
    """Asks for the test split at every turn of a fit."""

    def __init__(self):
        self.refusals = 0

    def on_validation_epoch_end(self, trainer, pl_module):
        with pytest.raises(DatasetError, match="sealed"):
            _ = trainer.datamodule.dataset.test
        self.refusals += 1


def test_fit_logs_validation_metrics_and_never_opens_the_test_split(root, tmp_path):
    data = RecDataModule(str(root), batch_size=32, eval_batch_size=6)
    evaluator, tries, model = AllRankingEvaluator(KS), TriesTest(), make_model()
    trainer = make_trainer(tmp_path, evaluator, tries, max_epochs=2)
    trainer.fit(model, datamodule=data)
    assert tries.refusals == 2
    with pytest.raises(DatasetError, match="sealed"):
        _ = data.dataset.test
    expected = brute_force(model.eval(), data.dataset.val, [data.dataset.train])
    for name in names(expected):
        logged = trainer.callback_metrics[f"val/{name}"].item()
        assert logged == pytest.approx(mean(expected, name), abs=1e-6)
        assert evaluator.history[-1][name] == pytest.approx(mean(expected, name), abs=1e-6)
    assert [h["epoch"] for h in evaluator.history] == [0, 1]
    assert not (tmp_path / "metrics").exists()


def test_sanity_check_leaves_no_history(root, tmp_path):
    evaluator = AllRankingEvaluator(KS)
    trainer = make_trainer(tmp_path, evaluator, max_epochs=1, num_sanity_val_steps=1)
    trainer.fit(make_model(), datamodule=RecDataModule(str(root), eval_batch_size=6))
    assert [h["users"] for h in evaluator.history] == [20]


def test_each_opening_of_the_test_split_is_counted(root, tmp_path):
    for times in (1, 2):
        record, *_ = evaluate(root, tmp_path, "test")
        written = json.loads((tmp_path / "metrics" / "test.json").read_text("utf-8"))
        assert written["test_openings"] == record["test_openings"] == times
    record, *_ = evaluate(root, tmp_path, "val")
    assert "test_openings" not in record


def test_results_lie_beside_the_checkpoint(root, tmp_path):
    run, data = tmp_path / "run", RecDataModule(str(root), batch_size=32)
    checkpoint = ModelCheckpoint(run / "checkpoints", filename="best")
    trainer = make_trainer(
        tmp_path / "elsewhere",
        AllRankingEvaluator(KS),
        checkpoint,
        max_epochs=1,
        enable_checkpointing=True,
    )
    trainer.fit(make_model(), datamodule=data)
    fresh = make_trainer(tmp_path / "elsewhere", AllRankingEvaluator(KS))
    path = run / "checkpoints" / "best.ckpt"
    fresh.test(make_model(), datamodule=RecDataModule(str(root)), ckpt_path=path, verbose=False)
    assert run_directory(fresh) == run.resolve()
    assert json.loads((run / "metrics" / "test.json").read_text("utf-8"))["checkpoint"] == str(path)
    assert not (tmp_path / "elsewhere" / "metrics").exists()


def test_k_above_the_catalogue_is_an_error_before_training(root, tmp_path):
    trainer = make_trainer(tmp_path, AllRankingEvaluator([10, 41]), max_epochs=1)
    with pytest.raises(ConfigError, match="K = 41 but the catalogue has 40 items"):
        trainer.fit(make_model(), datamodule=RecDataModule(str(root)))
    assert trainer.global_step == 0


def test_k_of_the_whole_catalogue_finds_every_held_out_item(root, tmp_path):
    record, *_ = evaluate(root, tmp_path, ks=[40])
    assert record["metrics"]["recall@40"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"ks": []}, "ks"),
        ({"ks": [0, 5]}, "ks"),
        ({"profile": "other"}, "profile"),
        ({"item_tile": 0}, "item_tile"),
    ],
)
def test_settings_out_of_range_are_errors(arguments, word):
    with pytest.raises(ConfigError, match=f"evaluation.{word}"):
        AllRankingEvaluator(**arguments)


def test_a_trainer_without_data_module_is_an_error(root, tmp_path):
    trainer, data = make_trainer(tmp_path, AllRankingEvaluator(KS)), RecDataModule(str(root))
    with pytest.raises(ConfigError, match="no data module"):
        trainer.validate(make_model(), data.val_dataloader())


TWO_PROCESSES = """
import sys
from test_callback import *

if __name__ == "__main__":
    root, folder = sys.argv[1:]
    data = RecDataModule(root, eval_batch_size=3)
    model = give_integer_weights(make_model(), data)
    trainer = make_trainer(folder, AllRankingEvaluator(KS), devices=2, strategy="ddp")
    trainer.validate(model, datamodule=data, verbose=False)
    torch.distributed.destroy_process_group()
"""


@pytest.mark.ddp
def test_two_processes_write_the_result_of_one(root, tmp_path):
    """20 users in batches of 3: 4 batches on each process, the last one short."""
    run_in_two_processes(TWO_PROCESSES, tmp_path, root, tmp_path / "two")
    one, *_ = evaluate(root, tmp_path / "one")
    two = json.loads((tmp_path / "two" / "metrics" / "val.json").read_text("utf-8"))
    assert two["metrics"] == pytest.approx(one["metrics"], abs=1e-14)
    assert two["exposure"] == one["exposure"]
    frames = [
        pl.read_parquet(tmp_path / f / "metrics" / "val_per_user.parquet") for f in ("one", "two")
    ]
    assert frames[0].equals(frames[1])
