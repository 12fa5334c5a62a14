"""The behaviours of Lightning that resume and evaluation rely on, so that an upgrade shows."""

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

ROOT = Path(__file__).parents[1]


class Tiny(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen = []

    def on_train_batch_start(self, batch, batch_idx):
        loop = self.trainer.fit_loop.epoch_loop
        self.seen.append((loop.batch_progress.total.ready, self.trainer.num_training_batches))

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def validation_step(self, batch, batch_idx):
        return ("anything", 1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(tmp_path, **options):
    return L.Trainer(
        **{
            "max_epochs": 2,
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "default_root_dir": tmp_path,
            "num_sanity_val_steps": 0,
        }
        | options
    )


def loader(n=3):
    return DataLoader(torch.ones(n, 1), batch_size=1)


def test_total_ready_counts_batches_from_one_over_all_epochs(tmp_path):
    model = Tiny()
    trainer(tmp_path).fit(model, loader())
    assert model.seen == [(i, 3) for i in range(1, 7)]


def test_total_ready_goes_on_after_a_resume(tmp_path):
    path = tmp_path / "step.ckpt"

    class Save(L.Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 4:
                trainer.save_checkpoint(path)

    trainer(tmp_path, callbacks=[Save()]).fit(Tiny(), loader())
    model = Tiny()
    trainer(tmp_path).fit(model, loader(), ckpt_path=path)
    assert model.seen[0][0] == 5


def test_a_validation_step_may_return_any_object(tmp_path):
    found = []

    class Keep(L.Callback):
        def on_validation_batch_end(self, trainer, module, outputs, *args):
            found.append(outputs)

    trainer(tmp_path, callbacks=[Keep()]).validate(Tiny(), loader(1), verbose=False)
    assert found == [("anything", 1)]


def test_callbacks_log_before_model_checkpoint_reads(tmp_path):
    class Log(L.Callback):
        def on_validation_epoch_end(self, trainer, module):
            module.log("val/x", float(trainer.current_epoch))

    keep = ModelCheckpoint(tmp_path, monitor="val/x", mode="max", filename="best")
    options = {"callbacks": [keep, Log()], "enable_checkpointing": True}
    trainer(tmp_path, **options).fit(Tiny(), loader(), loader(1))
    assert float(keep.best_model_score) == 1.0


def test_the_malicious_releases_are_excluded_and_constraints_are_within_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bound = next(d for d in project["dependencies"] if d.startswith("lightning"))
    assert "!=2.6.2" in bound
    assert "!=2.6.3" in bound
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    assert pins["lightning"] not in ("2.6.2", "2.6.3")
    assert version("lightning") not in ("2.6.2", "2.6.3")
    names = {re.split(r"[\[<>=!]", d)[0].lower() for d in project["dependencies"]}
    assert names <= {n.lower() for n in pins}


@pytest.mark.parametrize("file", ["constraints.txt", "pyproject.toml", "Makefile", ".ci/run"])
def test_no_registry_host_is_named(file):
    assert "://" not in (ROOT / file).read_text()
