"""`fit` with sparse gradients and LazyAdamW: resume is exact, two processes sum rows over gloo."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pair import do_together

from llmrec_pl.checkpoints import read_checkpoint
from llmrec_pl.cli import main
from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.data.features import FeatureStore
from llmrec_pl.data.triplets import TripletSampler
from llmrec_pl.errors import ConfigError
from llmrec_pl.models.mf import MF
from llmrec_pl.optimizers import LazyAdamW
from llmrec_pl.training import run

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
BATCH, EPOCHS, SETTINGS = 700, 2, {"lr": 0.05, "weight_decay": 0.1}


def arguments(data, root, *more):
    return [
        "fit",
        *("--data.root", str(data), "--data.batch_size", str(BATCH)),
        *("--model", "llmrec_pl.models.mf.MF", "--model.embedding_dim", "8"),
        *("--model.sparse_gradients", "true", "--model.l2_weight", "0.1"),
        *("--model.init_args.optimizer.class_path", "llmrec_pl.optimizers.LazyAdamW"),
        *(f"--model.init_args.optimizer.init_args.{k}={v}" for k, v in SETTINGS.items()),
        *("--trainer.accelerator", "cpu"),
        *("--evaluation.ks", "[5,20]", "--trainer.default_root_dir", str(root)),
        *more,
    ]


def checkpoint(root):
    return read_checkpoint(next(root.rglob("last.ckpt")))


def test_resume_with_clipping_is_bit_identical(small_data, tmp_path):
    options = ("--trainer.gradient_clip_val", "0.01", "--trainer.devices", "1")
    for name, epochs, more in (
        ("whole", 2, ()),
        ("half", 1, ()),
        ("resumed", 2, ("--ckpt_path", "half")),
    ):
        if more:
            more = ("--ckpt_path", str(next((tmp_path / more[1]).rglob("last.ckpt"))))
        plan = ("--trainer.max_epochs", str(epochs))
        main(arguments(small_data, tmp_path / name, *options, *plan, *more))
    whole, resumed = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "resumed")
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(tensor, resumed["state_dict"][name]), name
    states = [c["optimizer_states"][0]["state"] for c in (whole, resumed)]
    for number, state in states[0].items():
        for name, tensor in state.items():
            assert torch.equal(tensor, states[1][number][name]), name


@pytest.mark.ddp
def test_two_processes_take_the_step_of_both_batches(small_data, tmp_path):
    two = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
    plan = ("--trainer.max_epochs", str(EPOCHS), "--trainer.precision", "64-true")
    for rank in do_together([arguments(small_data, tmp_path / "two", *two, *plan)], tmp_path / "j"):
        assert rank[0]["status"] == 0, rank
    dataset = InteractionDataset.load(small_data)
    model = MF(embedding_dim=8, l2_weight=0.1, sparse_gradients=True)
    model.build_seeded(dataset, FeatureStore({}), seed=2026)
    model.double()
    optimizer = LazyAdamW(model.parameters(), **SETTINGS)
    sampler = TripletSampler(dataset.train, BATCH, seed=2026, world_size=2)
    for key in np.ndindex(EPOCHS, sampler.n_batches):
        for rank in range(2):
            drawn = sampler.batch(*key, rank)
            names = ("user", "pos_item", "neg_item")
            batch = {n: torch.from_numpy(getattr(drawn, n)) for n in names}
            (sum(model.losses(batch).values()) / 2).backward()
        assert model.user_embedding.weight.grad.is_sparse
        optimizer.step()
        optimizer.zero_grad()
    for name, tensor in checkpoint(tmp_path / "two")["state_dict"].items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=0, atol=1e-10)


def overlaid(small_data, model):
    configs = ("ml-100k.yaml", f"models/{model}.yaml", "large/lazy_rows.yaml")
    words = [word for c in configs for word in ("--config", str(ROOT / "configs" / c))]
    fast = ("--trainer.fast_dev_run", "2", "--trainer.accelerator", "cpu")
    return run(["fit", *words, "--data.root", str(small_data), *fast], quiet=True)


@pytest.mark.parametrize("model", ["mf", "mf_ccl", "mf_sampled_softmax", "vbpr"])
def test_the_overlay_makes_a_row_wise_model_lazy(small_data, model):
    cli = overlaid(small_data, model)
    assert isinstance(cli.trainer.optimizers[0], LazyAdamW)
    assert cli.model.user_embedding.sparse


def test_the_overlay_is_refused_for_a_model_that_reads_whole_tables(small_data):
    with pytest.raises(ConfigError, match=r"sparse_gradients.*LightGCN"):
        overlaid(small_data, "lightgcn")
