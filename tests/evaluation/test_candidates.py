"""Cold items ranked among themselves, and warm ones, against a dense float64 reference."""

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
from llmrec_pl.evaluation.callback import AllRankingEvaluator
from llmrec_pl.models.mf import MF

N_USERS, N_ITEMS, COLD, KS = 24, 30, range(2, 30, 4), [1, 3, 6]


def write_data(folder, splits_with_cold):
    """Every fourth item is in no train row; held out in these splits only, for every user."""
    rng = np.random.default_rng(0)
    warm = np.setdiff1d(np.arange(N_ITEMS), [*COLD])
    rows = []
    for user in range(N_USERS):
        own = warm[user % len(warm)]
        others = rng.permutation(warm[warm != own])
        cold = iter(rng.permutation([*COLD]))
        parts = {"train": [own, *others[:5]], "val": [*others[5:7]], "test": [*others[7:9]]}
        for split in splits_with_cold:
            parts[split] += [next(cold), next(cold)]
        rows += [(f"u{user:02d}", f"m{i:02d}", s) for s, items in parts.items() for i in items]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "split"], orient="row")
    items = pl.DataFrame({"item_id": [f"m{i:02d}" for i in range(N_ITEMS)]})
    given = ("train", "val", "test")
    raw = RawDataset("tiny", frame, items=items, fixed_catalogue=True, given_splits=given)
    prepare_dataset(raw, folder, Protocol(split="given"))
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "tiny", ("val", "test"))


def evaluate(root, folder, stage, evaluator):
    """Rank by integer embeddings, which give many ties; return the model and the data set."""
    data = RecDataModule(str(root), eval_batch_size=7)
    data.setup("validate")
    model = MF(embedding_dim=6)
    model.build_seeded(data.dataset, data.features, 0)
    generator = torch.Generator().manual_seed(0)
    for weight in (model.user_embedding.weight, model.item_embedding.weight):
        weight.data = torch.randint(-2, 3, weight.shape, generator=generator).float()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        default_root_dir=folder,
        callbacks=[evaluator],
    )
    run = trainer.validate if stage == "val" else trainer.test
    run(model, datamodule=data, verbose=False)
    return model, data.dataset


def reference(model, dataset, stage, candidates):
    """Recall and NDCG of each user from one sorted list of the candidates left."""
    scores = model.user_embedding.weight.double() @ model.item_embedding.weight.double().T
    train, val = dataset.train.toarray(), dataset.val.toarray()
    seen = train + val if stage == "test" else train
    relevant = dataset.test.toarray() if stage == "test" else val
    cold = train.sum(axis=0) == 0
    allowed = {"all": np.ones_like(cold), "cold": cold, "warm": ~cold}[candidates]
    values = {}
    for user, score in enumerate(scores.detach().numpy()):
        ranked = [i for i in np.flatnonzero(allowed) if not seen[user, i]]
        ranked.sort(key=lambda i, score=score: (-score[i], i))
        wanted = {i for i in np.flatnonzero(relevant[user]) if allowed[i]}
        if not wanted:
            continue
        values[user] = {"n": len(wanted)}
        for k in KS:
            gains = [1 / np.log2(r + 2) for r, i in enumerate(ranked[:k]) if i in wanted]
            best = sum(1 / np.log2(r + 2) for r in range(min(k, len(wanted))))
            values[user] |= {
                f"recall@{k}": len(gains) / len(wanted),
                f"ndcg@{k}": sum(gains) / best,
            }
    return values


@pytest.mark.parametrize("item_tile", [2, 32_768])
@pytest.mark.parametrize("candidates", ["all", "cold", "warm"])
@pytest.mark.parametrize("stage", ["val", "test"])
def test_candidates_are_ranked_among_themselves(root, tmp_path, stage, candidates, item_tile):
    evaluator = AllRankingEvaluator(KS, candidates=candidates, item_tile=item_tile)
    model, dataset = evaluate(root, tmp_path, stage, evaluator)
    expected = reference(model, dataset, stage, candidates)
    name = stage if candidates == "all" else f"{stage}_{candidates}"
    frame = pl.read_parquet(tmp_path / f"metrics/{name}_per_user.parquet")
    assert frame["user"].to_list() == sorted(expected)
    assert frame["n_relevant"].to_list() == [expected[u]["n"] for u in sorted(expected)]
    record = json.loads((tmp_path / f"metrics/{name}.json").read_text("utf-8"))
    assert record["candidates"] == candidates
    for metric in (m for m in next(iter(expected.values())) if m != "n"):
        values = [expected[u][metric] for u in sorted(expected)]
        np.testing.assert_allclose(frame[metric].to_numpy(), values, atol=1e-12, err_msg=metric)
        assert record["metrics"][metric] == pytest.approx(np.mean(values), abs=1e-12)


def test_groups_and_exposure_are_those_of_the_candidates(root, tmp_path):
    evaluator = AllRankingEvaluator([len(COLD)], candidates="cold")
    evaluate(root, tmp_path, "val", evaluator)
    record = evaluator.results["val"]
    assert record["exposure"][f"coverage@{len(COLD)}"] == 1.0
    assert record["exposure"][f"popularity@{len(COLD)}"] == 0.0
    assert record["groups"]["cold_items"] == record["metrics"]
    assert [record["groups"][f"{g}_items"]["users"] for g in ("head", "mid", "tail")] == [0, 0, 0]


def test_evaluations_of_other_candidates_leave_each_others_files(root, tmp_path):
    for candidates in ("all", "cold", "warm"):
        evaluate(root, tmp_path, "val", AllRankingEvaluator(KS, candidates=candidates))
    found = {p.name for p in (tmp_path / "metrics").glob("*.json")}
    assert found == {"val.json", "val_cold.json", "val_warm.json"}
    assert json.loads((tmp_path / "metrics/val.json").read_text("utf-8"))["candidates"] == "all"


def test_lists_longer_than_the_candidates_are_an_error(root, tmp_path):
    with pytest.raises(ConfigError, match="K = 8 but there are 7 cold items"):
        evaluate(root, tmp_path, "val", AllRankingEvaluator([8], candidates="cold"))


def test_a_data_set_without_cold_items_is_an_error_that_names_the_remedy(tmp_path):
    rows = [(f"u{u}", f"m{i}", s) for u in range(4) for i, s in enumerate(("train", "val", "test"))]
    rows += [(f"u{u + 4}", f"m{i}", "train") for u in range(4) for i in range(3)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "split"], orient="row")
    raw = RawDataset("warm", frame, given_splits=("train", "val", "test"))
    prepare_dataset(raw, tmp_path / "warm", Protocol(split="given"))
    with pytest.raises(ConfigError, match=r"'warm' has no cold item; `prepare --cold-items"):
        evaluate(tmp_path / "warm", tmp_path, "val", AllRankingEvaluator([1], candidates="cold"))


def test_a_split_that_holds_no_cold_item_out_is_an_error(tmp_path):
    root = write_data(tmp_path / "tiny", ("test",))
    with pytest.raises(ConfigError, match=r"no cold item is held out in the val split of 'tiny'"):
        evaluate(root, tmp_path, "val", AllRankingEvaluator(KS, candidates="cold"))
    evaluate(root, tmp_path, "test", AllRankingEvaluator(KS, candidates="cold"))


def test_unknown_candidates_are_an_error():
    with pytest.raises(ConfigError, match=r"`evaluation.candidates` must be one of"):
        AllRankingEvaluator(KS, candidates="new")
