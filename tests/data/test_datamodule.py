from __future__ import annotations

import lightning as L
import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from llmrec_pl.data.augmentation import write_augmentation
from llmrec_pl.data.datamodule import RecDataModule, UserSampler
from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.data.features import Feature
from llmrec_pl.data.prepare import Protocol, prepare_dataset
from llmrec_pl.data.sources.base import RawDataset, RawFeature
from llmrec_pl.errors import ConfigError, DatasetError
from llmrec_pl.models.mf import MF

N_USERS, N_ITEMS = 20, 30


def make_folder(out, *, n_with_val=12):
    """20 users with 5 train items and a test item, the first of them with a validation item."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(N_USERS):
        items = rng.permutation(N_ITEMS)[:7]
        splits = ["train"] * 5 + ["test"] + (["val"] if user < n_with_val else [])
        rows += [(f"u{user:02d}", f"m{i:02d}", s) for i, s in zip(items, splits, strict=False)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "split"], orient="row")
    raw = RawDataset(
        "tiny",
        frame,
        items=pl.DataFrame({"item_id": [f"m{i:02d}" for i in range(N_ITEMS)]}),
        users=pl.DataFrame({"user_id": [f"u{i:02d}" for i in range(N_USERS)]}),
        fixed_catalogue=True,
        given_splits=("train", "val", "test"),
        features=[RawFeature("item", "image", "modality", np.ones((N_ITEMS, 4), np.float32))],
    )
    prepare_dataset(raw, out, Protocol(split="given"))
    return out


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="module")
def augmentation(root):
    """One LLM edge for each of the users 0..14, a user profile and an item attribute."""
    dataset = InteractionDataset.load(root)
    rng = np.random.default_rng(1)
    edges = np.zeros((3, 15), dtype=np.int64)
    for user in range(15):
        unseen = np.setdiff1d(np.arange(N_ITEMS), dataset.train[[user]].indices)
        edges[:, user] = user, *rng.choice(unseen, 2, replace=False)
    features = [
        Feature("profile", "user", "profile", np.ones((N_USERS, 2), np.float32)),
        Feature("genre", "item", "attribute", np.ones((N_ITEMS, 3), np.float32)),
    ]
    manifest = {"provider": "test", "model": "none", "prompt_set": "none"}
    path = root.parent / "augmentation"
    write_augmentation(path, dataset, edges=edges, features=features, manifest=manifest)
    return str(path)


def make_data(root, **arguments):
    return RecDataModule(str(root), **({"batch_size": 16, "eval_batch_size": 5} | arguments))


class Recorder(L.Callback):
    def __init__(self):
        self.batches = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append({name: value.clone() for name, value in batch.items()})


def recorded_fit(data, folder, **arguments):
    recorder = Recorder()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        default_root_dir=folder,
        callbacks=[recorder],
        **({"max_epochs": 3} | arguments),
    )
    trainer.fit(MF(embedding_dim=4), datamodule=data)
    return recorder.batches


def assert_equal(batches, expected):
    assert len(batches) == len(expected)
    for a, b in zip(batches, expected, strict=True):
        assert list(a) == list(b)
        for name in a:
            assert torch.equal(a[name], torch.as_tensor(b[name])), name


@pytest.mark.parametrize("sampling", ["edge", "user"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_fit_sees_the_batches_of_the_sampler_in_order(
    root, augmentation, tmp_path, sampling, workers
):
    data = make_data(
        root,
        augmentation=augmentation,
        llm_edge_rate=0.5,
        sampling=sampling,
        num_workers=workers,
        seed=3,
    )
    batches = recorded_fit(data, tmp_path)
    sampler = data.make_sampler()
    assert sampler.n_batches == 7
    keys = [(epoch, step) for epoch in range(3) for step in range(7)]
    assert_equal(batches, [vars(sampler.batch(*key)) for key in keys])
    assert sum(int(b["source"].sum()) for b in batches) > 0, "the case needs LLM triplets"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_fit_sees_many_negatives(root, augmentation, tmp_path, workers):
    arguments = {"augmentation": augmentation, "llm_edge_rate": 0.5, "num_workers": workers}
    data = make_data(root, n_negatives=4, **arguments)
    batches = recorded_fit(data, tmp_path, max_epochs=2)
    sampler = data.make_sampler()
    keys = [(epoch, step) for epoch in range(2) for step in range(7)]
    assert_equal(batches, [vars(sampler.batch(*key)) for key in keys])
    assert all(b["neg_items"].shape == (len(b["user"]), 4) for b in batches)
    assert "of 4 negatives" in data.summary()["batches"]


@pytest.mark.parametrize("workers", [0, 2])
def test_limited_epochs_begin_at_step_zero(root, tmp_path, workers):
    data = make_data(root, num_workers=workers)
    batches = recorded_fit(data, tmp_path, limit_train_batches=2, max_epochs=2)
    sampler = data.make_sampler()
    keys = [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert_equal(batches, [vars(sampler.batch(*key)) for key in keys])


def test_the_seed_changes_the_batches(root, tmp_path):
    first, second = (recorded_fit(make_data(root, seed=s), tmp_path, max_epochs=1) for s in (1, 2))
    assert not torch.equal(first[0]["pos_item"], second[0]["pos_item"])


@given(st.integers(0, 60), st.integers(1, 9))
def test_ranks_together_get_each_user_exactly_once(n, world):
    dataset = TensorDataset(torch.arange(n))
    samplers = [UserSampler(dataset, world, rank) for rank in range(world)]
    given_out = [list(sampler) for sampler in samplers]
    assert sorted(user for users in given_out for user in users) == list(range(n))
    assert [len(sampler) for sampler in samplers] == [len(users) for users in given_out]
    assert max(map(len, given_out)) - min(map(len, given_out)) <= 1


def users_of(loader):
    batches = [batch["user"] for batch in loader]
    assert all(1 <= len(b) <= 5 and b.dtype == torch.int64 for b in batches)
    return torch.cat(batches).tolist()


def test_evaluation_loaders_hold_each_user_with_held_out_items_once(root):
    data = make_data(root)
    data.setup("test")
    assert users_of(data.val_dataloader()) == list(range(12))
    assert users_of(data.test_dataloader()) == list(range(N_USERS))
    assert users_of(data.predict_dataloader()) == list(range(N_USERS))


def test_an_empty_validation_split_is_an_error(tmp_path):
    data = make_data(make_folder(tmp_path / "tiny", n_with_val=0))
    with pytest.raises(DatasetError, match="no user of 'tiny' has interactions in split 'val'"):
        data.val_dataloader()


@pytest.mark.parametrize("stage", ["fit", "validate", "predict", None])
def test_only_the_test_stage_opens_the_test_split(root, stage):
    data = make_data(root)
    data.setup(stage)
    with pytest.raises(DatasetError, match="sealed"):
        data.test_dataloader()
    data.setup("test")
    assert data.dataset.test.nnz == N_USERS


def test_without_an_augmentation_the_rate_in_effect_is_zero(root):
    data = make_data(root, llm_edge_rate=0.7)
    assert data.effective_llm_edge_rate == 0.0
    assert data.llm_edges is None
    sampler = data.make_sampler()
    assert all((sampler.batch(0, step).source == 0).all() for step in range(sampler.n_batches))
    assert data.summary()["augmentation"] == "none (w3 = 0)"


def test_parts_of_the_augmentation_can_be_left_out(root, augmentation):
    def parts(*names):
        data = make_data(root, augmentation=augmentation, llm_edge_rate=0.7, llm_parts=[*names])
        data.setup("fit")
        return data.effective_llm_edge_rate, {f.group for f in data.features.values()}

    assert parts("edges") == (0.7, {"modality"})
    assert parts("profiles") == (0.0, {"modality", "profile"})
    assert parts("attributes") == (0.0, {"modality", "attribute"})
    assert parts() == (0.0, {"modality"})


def test_llm_positives_join_the_graph_only_when_asked(root, augmentation):
    plain = make_data(root, augmentation=augmentation)
    joined = make_data(root, augmentation=augmentation, llm_edges_in_graph=True)
    plain.setup("fit")
    joined.setup("fit")
    assert plain.dataset.graph_edges().shape == (2, 100)
    edges = set(map(tuple, joined.dataset.graph_edges().T.tolist()))
    assert edges >= set(map(tuple, joined.llm_edges[:2].T.tolist()))
    assert len(edges) == 115
    assert joined.dataset.train.nnz == 100, "an LLM edge is no train interaction"


def test_features_can_be_left_out_by_name(root):
    assert list(make_data(root).features) == ["image"]
    assert list(make_data(root, exclude_features=["image"]).features) == []


def test_an_unknown_feature_to_leave_out_is_an_error(root):
    with pytest.raises(DatasetError, match=r"no feature 'imgae'.*\['image'\]"):
        make_data(root, exclude_features=["imgae"]).setup("fit")


@pytest.mark.parametrize(
    "arguments",
    [
        {"llm_edge_rate": 1.5},
        {"llm_edge_rate": -0.1},
        {"batch_size": 0},
        {"n_negatives": 0},
        {"eval_batch_size": 0},
    ],
)
def test_settings_out_of_range_are_errors(root, arguments):
    with pytest.raises(ConfigError, match=f"data.{next(iter(arguments))}"):
        make_data(root, **arguments)


def test_train_batches_need_a_trainer(root):
    with pytest.raises(ConfigError, match="needs a trainer"):
        make_data(root).train_dataloader()
