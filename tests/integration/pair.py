"""Two processes that do jobs together, one after another, as ranks of one torchrun job.

Started once for many jobs, because a process takes seconds to load its libraries.
"""

import contextlib
import importlib
import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import lightning as L
import numpy as np

ROOT = Path(__file__).parents[2]


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def do_together(jobs, folder, n=2, timeout=1800):
    """Do each job in n processes at once; return status and stderr of each, by rank.

    A job is a command line, or ``["call", "module:function", argument...]``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    planned = [{"job": [str(word) for word in job], "port": str(free_port())} for job in jobs]
    (folder / "jobs.json").write_text(json.dumps(planned))
    common = {
        "WORLD_SIZE": str(n),
        "LOCAL_WORLD_SIZE": str(n),
        "MASTER_ADDR": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "TORCHELASTIC_RUN_ID": "test",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    running = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(n)
    ]
    try:
        said = [process.communicate(timeout=timeout)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert all(process.returncode == 0 for process in running), "\n".join(said)
    return [json.loads((folder / f"done{rank}.json").read_text()) for rank in range(n)]


def _work(folder):
    """What each of the processes does."""
    import torch

    from llmrec_pl.cli import main

    done = []
    for planned in json.loads((folder / "jobs.json").read_text()):
        os.environ["MASTER_PORT"] = planned["port"]
        job, status, errors = planned["job"], 0, io.StringIO()
        try:
            with contextlib.redirect_stderr(errors):
                if job[0] == "call":
                    module, _, name = job[1].partition(":")
                    getattr(importlib.import_module(module), name)(*job[2:])
                else:
                    main(job)
        except SystemExit as end:
            status = end.code
        except BaseException:
            sys.stderr.write(errors.getvalue())
            raise
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        done.append({"status": status, "stderr": errors.getvalue()})
    (folder / f"done{os.environ['RANK']}.json").write_text(json.dumps(done))


class Recorder(L.Callback):
    """Writes down which triplets and which users each process gets."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.triplets, self.users = [], []

    def on_train_start(self, trainer, pl_module):
        buffers = {name for name, _ in pl_module.named_buffers()}
        self.counts = {
            "buffers": len(buffers),
            "kept": len(buffers & set(pl_module.state_dict())),
            "sent": len(trainer.strategy.model.modules_buffers),
        }

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        observed = batch["source"] == 0
        rows = [batch[name][observed] for name in ("user", "pos_item", "neg_item")]
        epoch = np.full((1, int(observed.sum())), trainer.current_epoch)
        self.triplets.append(np.concatenate([epoch, *(r[None].numpy() for r in rows)]))

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, *rest):
        assert len(outputs.user) == len(batch["user"])
        self.users.append(batch["user"].numpy())

    def on_fit_end(self, trainer, pl_module):
        np.savez(
            self.folder / f"rank{trainer.global_rank}.npz",
            triplets=np.concatenate(self.triplets, axis=1),
            users=np.concatenate(self.users),
            **self.counts,
        )


class SaveAt(L.Callback):
    """Writes a checkpoint after one step."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def callback(name, **arguments):
    """The option that adds a callback of this file."""
    values = ", ".join(f"{key}: {value}" for key, value in arguments.items())
    return "--trainer.callbacks+", f"{{class_path: pair.{name}, init_args: {{{values}}}}}"


if __name__ == "__main__":
    _work(Path(sys.argv[1]))
