from __future__ import annotations

import io

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from llmrec_pl.progress_bar import ProgressLines, worker_progress


class Falling(L.LightningModule):
    """A validation metric of 0.75, 0.5 and 0.25; the first is the best."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch, batch_idx):
        return self.weight * batch.float().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val/recall@20", 0.75 - 0.25 * self.current_epoch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.arange(4), batch_size=2)

    val_dataloader = train_dataloader


def lines_of(folder, **settings):
    stream = io.StringIO()
    best = ModelCheckpoint(folder, monitor="val/recall@20", mode="max")
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        max_epochs=3,
        callbacks=[ProgressLines(stream=stream, **settings), best],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(Falling())
    return stream.getvalue().splitlines()


def test_a_line_has_the_place_the_metric_and_the_best_so_far(tmp_path):
    lines = lines_of(tmp_path, label="MF, seed 1", interval=0)
    assert len(lines) == 6
    assert lines[0] == "MF, seed 1: epoch 1/3, step 1/2"
    assert lines[-1] == (
        "MF, seed 1: epoch 3/3, step 2/2, val/recall@20 0.5000, best val/recall@20 0.7500"
    )


def test_without_a_label_a_line_begins_with_the_epoch(tmp_path):
    assert lines_of(tmp_path, interval=0)[0] == "epoch 1/3, step 1/2"


def test_no_line_comes_before_the_interval_is_over(tmp_path):
    assert lines_of(tmp_path, interval=3600) == []


@pytest.mark.parametrize(("forced", "n"), [("1", 0), ("0", 1)])
def test_workers_print_no_lines_onto_a_terminal(monkeypatch, forced, n):
    monkeypatch.setenv("TTY_COMPATIBLE", forced)
    assert len(worker_progress("MF")) == n
