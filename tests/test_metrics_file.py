from __future__ import annotations

import csv

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from llmrec_pl.metrics_file import MetricsFile


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def test_rows_are_written_at_once_with_the_columns_known_so_far(tmp_path):
    logger = MetricsFile(str(tmp_path / "run"))
    logger.log_metrics({"loss": 1.5}, step=0)
    assert rows(tmp_path / "run") == [{"loss": 1.5, "step": 0}]
    logger.log_metrics({"val/recall@20": 0.25}, step=0)
    logger.log_metrics({"loss": 1.0}, step=1)
    assert rows(tmp_path / "run") == [
        {"loss": 1.5, "step": 0},
        {"val/recall@20": 0.25, "step": 0},
        {"loss": 1.0, "step": 1},
    ]


def test_a_second_process_goes_on_behind_the_first(tmp_path):
    MetricsFile(str(tmp_path)).log_metrics({"loss": 2.0, "old": 1.0}, step=4)
    MetricsFile(str(tmp_path)).log_metrics({"loss": 1.0, "new": 3.0}, step=9)
    assert rows(tmp_path) == [
        {"loss": 2.0, "old": 1.0, "step": 4},
        {"loss": 1.0, "new": 3.0, "step": 9},
    ]


def test_steps_that_are_trained_again_have_one_row(tmp_path):
    first = MetricsFile(str(tmp_path))
    for step in range(5):
        first.log_metrics({"loss": float(step)}, step)
    MetricsFile(str(tmp_path)).log_metrics({"loss": 30.0}, step=3)
    assert [row["loss"] for row in rows(tmp_path)] == [0, 1, 2, 30]


@pytest.mark.parametrize("cut", range(2, 12))
def test_a_row_that_was_cut_off_in_its_writing_is_left_out(tmp_path, cut):
    first = MetricsFile(str(tmp_path))
    first.log_metrics({"aa": 1.0, "zz": 0.5}, 3)
    first.log_metrics({"aa": 2.0, "zz": 0.25}, 7)
    path = tmp_path / "metrics.csv"
    path.write_bytes(path.read_bytes()[:-cut])
    MetricsFile(str(tmp_path)).log_metrics({"aa": 3.0, "zz": 0.125}, 11)
    assert rows(tmp_path) == [
        {"aa": 1.0, "zz": 0.5, "step": 3},
        {"aa": 3.0, "zz": 0.125, "step": 11},
    ]


class Line(L.LightningModule):
    """Logs a mean an epoch and a validation metric."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch, batch_idx):
        loss = (self.weight * batch.float()).mean() ** 2
        self.log("train/loss", loss.detach(), on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/weight", self.weight.detach())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.arange(12), batch_size=4)

    val_dataloader = train_dataloader


def fit(folder, epochs, checkpoint=None):
    trainer = L.Trainer(
        accelerator="cpu",
        logger=MetricsFile(str(folder)),
        max_epochs=epochs,
        callbacks=[ModelCheckpoint(save_last=True)],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(Line(), ckpt_path=checkpoint)


def test_a_run_resumed_in_its_folder_has_the_rows_of_one_that_never_stopped(tmp_path):
    fit(tmp_path / "calm", 4)
    fit(tmp_path / "stopped", 2)
    fit(tmp_path / "stopped", 4, tmp_path / "stopped/checkpoints/last.ckpt")
    assert rows(tmp_path / "stopped") == rows(tmp_path / "calm")
    assert [row["step"] for row in rows(tmp_path / "calm")] == [2, 2, 5, 5, 8, 8, 11, 11]
