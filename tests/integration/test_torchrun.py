"""Two nodes of one process each, started by torchrun, leave what two devices of one node leave."""

import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch
from pair import free_port

from llmrec_pl.checkpoints import read_checkpoint

pytestmark = [pytest.mark.ddp, pytest.mark.slow]
ROOT = Path(__file__).parents[2]


def fit(llmrec_arguments, folder, *more):
    return [
        *("-m", "llmrec_pl", *llmrec_arguments, "--data.batch_size", "250"),
        *("--trainer.max_epochs", "2", "--trainer.default_root_dir", str(folder), *more),
    ]


def start(*command):
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_all(*processes):
    try:
        said = [process.communicate(timeout=1800)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(said)
    return said


@pytest.fixture(scope="module")
def runs(llmrec_arguments, tmp_path_factory):
    """Folders of the runs, and what the second node printed."""
    root, port = tmp_path_factory.mktemp("torchrun"), str(free_port())
    nodes = [
        start(
            *("-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"),
            *("--node-rank", str(rank), "--master-addr", "127.0.0.1", "--master-port", port),
            *("--local-addr", "127.0.0.1"),
            *fit(llmrec_arguments, root / "nodes", "--trainer.num_nodes", "2"),
            *("--trainer.devices", "1", "--trainer.strategy", "ddp"),
        )
        for rank in range(2)
    ]
    _, second = wait_for_all(*nodes)
    two = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
    wait_for_all(start(*fit(llmrec_arguments, root / "devices", *two)))
    nodes, devices = (next((root / n).rglob("best.ckpt")).parents[1] for n in ("nodes", "devices"))
    return nodes, devices, second


def test_nodes_end_in_the_metrics_of_devices(runs):
    nodes, devices, _ = runs
    of_nodes, of_devices = (
        json.loads((run / "metrics/val.json").read_text()) for run in (nodes, devices)
    )
    for part in ("metrics", "exposure", "groups"):
        assert of_nodes[part] == of_devices[part]
    of_nodes, of_devices = (
        pl.read_parquet(run / "metrics/val_per_user.parquet") for run in (nodes, devices)
    )
    assert of_nodes.equals(of_devices)


def test_nodes_end_in_the_weights_of_devices(runs):
    of_nodes, of_devices = (
        read_checkpoint(run / "checkpoints/last.ckpt")["state_dict"] for run in runs[:2]
    )
    assert all(torch.equal(of_nodes[name], of_devices[name]) for name in of_devices)


def test_only_the_first_node_makes_a_run_folder_and_prints(runs):
    nodes, _, second = runs
    assert [p.name for p in nodes.parent.iterdir()] == ["version_0"]
    assert "users evaluated" not in second
    assert "sync_dist" not in second
