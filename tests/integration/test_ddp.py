"""Two processes: each rank its own triplets, every user once, the metrics of one process."""

import json

import polars as pl
import pytest

from llmrec_pl.checkpoints import read_checkpoint

pytestmark = [pytest.mark.ddp, pytest.mark.slow]
TWO = ("--trainer.devices", "2", "--trainer.strategy", "ddp")


@pytest.fixture(scope="module")
def trained(llmrec_arguments, tmp_path_factory):
    """Train in two processes; the folder of the run."""
    import os
    import subprocess
    import sys

    root = tmp_path_factory.mktemp("ddp")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "llmrec_pl", *llmrec_arguments, *TWO),
            *("--trainer.max_epochs", "2", "--data.batch_size", "250"),
            *("--trainer.default_root_dir", str(root)),
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return next(root.rglob("best.ckpt")).parents[1]


def metrics(run, stage):
    return json.loads((run / "metrics" / f"{stage}.json").read_text())["metrics"]


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_one_and_two_processes_evaluate_alike(trained, command, stage):
    arguments = (
        stage,
        "--config",
        trained / "config.yaml",
        "--ckpt_path",
        trained / "checkpoints/best.ckpt",
    )
    split = {"validate": "val", "test": "test"}.get(stage)
    results = []
    for devices in (TWO, ("--trainer.devices", "1", "--trainer.strategy", "auto")):
        command(*arguments, *devices)
        if split is None:
            results.append(pl.read_parquet(trained / "predictions" / "top_k.parquet"))
        else:
            per_user = pl.read_parquet(trained / "metrics" / f"{split}_per_user.parquet")
            assert per_user["user"].is_unique().all()
            assert per_user.height == metrics(trained, split)["users"]
            results.append((metrics(trained, split), per_user))
    if split is None:
        assert results[0]["item"].equals(results[1]["item"])
        assert results[0]["user"].equals(results[1]["user"])
        return
    (two, two_users), (one, one_users) = results
    assert two == pytest.approx(one, abs=1e-12)
    assert two_users.equals(one_users)


def test_training_leaves_equal_ranks_and_one_record(trained, command, llmrec_arguments, tmp_path):
    checkpoint = read_checkpoint(trained / "checkpoints/last.ckpt")
    plan = checkpoint["llmrec_pl"]["plan"]
    assert plan["number of processes"] == 2
    assert checkpoint["global_step"] == 2 * plan["batches an epoch"]
    done = command(
        *llmrec_arguments,
        *("--data.batch_size", "250", "--trainer.max_epochs", "3"),
        *("--ckpt_path", trained / "checkpoints/last.ckpt"),
        *("--trainer.default_root_dir", tmp_path),
        check=False,
    )
    assert done.returncode != 0
    assert "number of processes" in done.stderr
    assert not list(tmp_path.rglob("unused"))


def test_resume_in_two_processes_is_bit_identical(trained, command, llmrec_arguments, tmp_path):
    common = (*llmrec_arguments, *TWO, "--data.batch_size", "250", "--trainer.max_epochs", "3")
    command(*common, "--trainer.default_root_dir", tmp_path / "whole")
    command(
        *common,
        *("--ckpt_path", trained / "checkpoints/last.ckpt"),
        *("--trainer.default_root_dir", tmp_path / "resumed"),
    )
    whole, resumed = (
        read_checkpoint(next((tmp_path / d).rglob("last.ckpt")))["state_dict"]
        for d in ("whole", "resumed")
    )
    assert all((whole[name] == resumed[name]).all() for name in whole)
