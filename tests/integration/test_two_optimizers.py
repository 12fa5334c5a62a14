"""A model with an adversary: resumes bit for bit with both optimizers, runs in two processes."""

from pathlib import Path

import lightning as L
import pytest
import torch

import llmrec_pl.training
from llmrec_pl.checkpoints import read_checkpoint

CONFIGS = Path(__file__).parents[2] / "configs"
TWO = ("--trainer.devices", "2", "--trainer.strategy", "ddp")


@pytest.fixture(scope="module")
def arguments(small_data):
    """`fit` of MMSSL with every part on, and a scheduler that changes every epoch."""
    return [
        "fit",
        *("--config", str(CONFIGS / "ml-100k.yaml")),
        *("--config", str(CONFIGS / "models/mmssl.yaml")),
        *("--data.root", str(small_data)),
        *("--data.batch_size", "512"),
        *("--model.init_args.embedding_dim", "16"),
        *("--model.init_args.generator_weight", "0.1"),
        *("--model.init_args.n_critic_users", "32"),
        *(
            "--model.init_args.lr_scheduler",
            "{class_path: torch.optim.lr_scheduler.ExponentialLR, init_args: {gamma: 0.5}}",
        ),
        *("--trainer.accelerator", "cpu", "--evaluation.ks", "[5,20]"),
        *("--trainer.max_epochs", "3", "--early_stopping.patience", "50"),
    ]


def fit(arguments, root, *more):
    more = map(str, more)
    return llmrec_pl.training.run([*arguments, "--trainer.default_root_dir", str(root), *more])


class SaveEveryBatch(L.Callback):
    """Writes a checkpoint after every batch but an epoch's last; a batch is two global steps."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def on_train_batch_end(self, trainer, *args):
        started = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        if started % int(trainer.num_training_batches):
            trainer.save_checkpoint(self.folder / f"step{started}.ckpt")


@pytest.fixture(scope="module")
def whole_run(arguments, tmp_path_factory):
    """An uninterrupted run that left a checkpoint after every step, and its last one."""
    folder = tmp_path_factory.mktemp("whole")
    callback = f"{{class_path: {__name__}.SaveEveryBatch, init_args: {{folder: {folder}}}}}"
    cli = fit(arguments, folder, "--trainer.callbacks+", callback)
    return folder, last(folder), int(cli.trainer.num_training_batches)


def last(folder):
    return read_checkpoint(next(folder.rglob("last.ckpt")))


def assert_equal(found, expected):
    """All weights, the state of both optimizers, and the scheduler."""
    for name, tensor in expected["state_dict"].items():
        assert torch.equal(found["state_dict"][name], tensor), name
    assert len(expected["optimizer_states"]) == 2
    for mine, theirs in zip(found["optimizer_states"], expected["optimizer_states"], strict=True):
        assert mine["param_groups"] == theirs["param_groups"]
        for key, state in theirs["state"].items():
            for name, value in state.items():
                assert torch.equal(mine["state"][key][name], value), (key, name)
    assert found["lr_schedulers"] == expected["lr_schedulers"]


def test_the_scheduler_steps_once_an_epoch(whole_run):
    generator, critic = (s["param_groups"][0] for s in whole_run[1]["optimizer_states"])
    assert generator["lr"] == pytest.approx(3e-3 / 8)
    assert critic["lr"] == 3e-4


def test_relations_are_those_of_the_third_epochs_start(whole_run):
    state = whole_run[1]["state_dict"]
    snapshot = state["relations.text.projection_weight"]
    assert not torch.equal(snapshot, state["projection.text.weight"])
    at_start = read_checkpoint(whole_run[0] / f"step{2 * whole_run[2] + 1}.ckpt")["state_dict"]
    assert torch.equal(snapshot, at_start["relations.text.projection_weight"])


@pytest.mark.parametrize("place", ["first step", "before last", "second epoch"])
def test_resume_in_the_middle_of_an_epoch(whole_run, arguments, tmp_path, place):
    folder, expected, n = whole_run
    assert n >= 3, "the data set must give several steps an epoch"
    step = {"first step": 1, "before last": n - 1, "second epoch": n + n // 2}[place]
    fit(arguments, tmp_path, "--ckpt_path", folder / f"step{step}.ckpt")
    assert_equal(last(tmp_path), expected)


def test_resume_at_an_epoch_end(whole_run, arguments, tmp_path):
    fit(arguments, tmp_path / "a", "--trainer.max_epochs", 1)
    path = next((tmp_path / "a").rglob("last.ckpt"))
    fit(arguments, tmp_path / "b", "--ckpt_path", path)
    assert_equal(last(tmp_path / "b"), whole_run[1])


def test_half_precision_trains(arguments, tmp_path):
    cli = fit(arguments, tmp_path, "--trainer.precision", "bf16-mixed", "--trainer.max_epochs", 1)
    assert all(p.isfinite().all() for p in cli.model.parameters())
    steps = [s["step"] for o in cli.trainer.optimizers for s in o.state.values()]
    assert steps
    assert min(steps) > 0


@pytest.mark.ddp
@pytest.mark.slow
def test_two_processes_resume_bit_for_bit(arguments, command, tmp_path):
    common = (*arguments, *TWO, "--data.batch_size", "250")
    command(*common, "--trainer.default_root_dir", tmp_path / "whole")
    half = ("--trainer.max_epochs", "1", "--trainer.default_root_dir", tmp_path / "half")
    command(*common, *half)
    path = next((tmp_path / "half").rglob("last.ckpt"))
    command(*common, "--ckpt_path", path, "--trainer.default_root_dir", tmp_path / "resumed")
    assert_equal(last(tmp_path / "resumed"), last(tmp_path / "whole"))
