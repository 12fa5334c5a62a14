"""LightningCLI for ``fit``, ``validate``, ``test`` and ``predict``."""

from __future__ import annotations

import logging
import os
import warnings
from argparse import ArgumentError
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from rich.console import Console

from llmrec_pl.checkpoints import (
    CHECKPOINT_KEY,
    AtomicCheckpointIO,
    BestCheckpoint,
    ResumeCheckpoint,
    read_checkpoint,
)
from llmrec_pl.configs import as_list, load_yaml
from llmrec_pl.cost import RunCost
from llmrec_pl.data.datamodule import RecDataModule
from llmrec_pl.data.shares import batch_share
from llmrec_pl.errors import ConfigError, LLMRecError
from llmrec_pl.evaluation.callback import AllRankingEvaluator, run_directory
from llmrec_pl.evaluation.metrics import metric_names
from llmrec_pl.evaluation.plots import plot_history
from llmrec_pl.evaluation.predictions import PredictionWriter
from llmrec_pl.evaluation.tables import groups_table, metrics_table
from llmrec_pl.metrics_file import MetricsFile
from llmrec_pl.mistyped import explained
from llmrec_pl.models.base import Recommender
from llmrec_pl.progress_bar import training_progress

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TRAINER_DEFAULTS = {
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 1,
    "max_epochs": 100,
    "enable_model_summary": False,
}
SPECIAL_CHECKPOINTS = ("best", "last", "registry")
"""Words that Lightning resolves only in the process that trained."""
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
# Tables need some width where the output goes to a file.
console = Console(width=None if Console().is_terminal else 120)


class _SaveFitConfig(SaveConfigCallback):
    """Keeps the config of a training run; evaluations leave no second one behind."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            # Kept, it would make a later `test` without one take the checkpoint resumed from.
            self.config = self.config.clone()
            self.config["ckpt_path"] = None
            super().setup(trainer, pl_module, stage)


class RecommenderCLI(LightningCLI):
    """Adds the forced callbacks, each under its own top-level key, and what a run prints."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Give evaluator, checkpoint, early stopping and predictions keys of their own.

        As items of ``trainer.callbacks`` an overlay would replace them silently.
        """
        self._parsers = [*getattr(self, "_parsers", []), parser]
        parser.add_lightning_class_args(AllRankingEvaluator, "evaluation")
        parser.add_lightning_class_args(BestCheckpoint, "checkpoint")
        parser.add_lightning_class_args(EarlyStopping, "early_stopping")
        parser.add_lightning_class_args(ResumeCheckpoint, "resume")
        parser.add_lightning_class_args(PredictionWriter, "predictions")
        parser.set_defaults(
            {
                "checkpoint.monitor": "val/recall@20",
                "checkpoint.mode": "max",
                "checkpoint.filename": "best",
                "checkpoint.auto_insert_metric_name": False,
                "checkpoint.enable_version_counter": False,
                "early_stopping.monitor": "val/recall@20",
                "early_stopping.mode": "max",
                "early_stopping.patience": 10,
            }
        )
        parser.link_arguments("seed_everything", "data.seed", compute_fn=_fixed_seed)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:  # noqa: ANN401
        """Parse, and look at the checkpoint before anything is built.

        Raises:
            ConfigError: a key is mistyped, or there is no such checkpoint.
        """
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            parsers = dict(zip(self.subcommands(), self._parsers, strict=True))
            known = set(parsers[args[0]].get_defaults().keys())
            raise explained(args, known, str(error)) from error
        path = self.config[self.config.subcommand].get("ckpt_path")
        self._trained_features: list[str] | None = None
        if path == "hpc":
            return
        if path in SPECIAL_CHECKPOINTS or (not path and self.config.subcommand != "fit"):
            raise ConfigError(
                f"`{self.config.subcommand}` needs `--ckpt_path` with the path of a checkpoint "
                f"file (got {path!r}); `fit` prints it at its end, under `<run>/checkpoints/`."
            )
        if path:
            record = read_checkpoint(path, mmap=True)[CHECKPOINT_KEY]
            self._trained_features = list(record["features"])

    def after_instantiate_classes(self) -> None:
        """Leave out features that were added after a checkpoint was trained."""
        self.datamodule.features_in_use = self._trained_features

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:  # noqa: ANN401
        """Add atomic checkpoints, a progress display, and loggers in a folder of the run's own."""
        config = self.config_init[self.subcommand]["trainer"]
        kwargs["plugins"] = [*as_list(config.get("plugins")), AtomicCheckpointIO()]
        self.cost = RunCost()
        callbacks = [*as_list(config.get("callbacks")), self.cost]
        if config.get("enable_progress_bar") is not False and not config.get("fast_dev_run"):
            bar = training_progress()
            kwargs["enable_progress_bar"] = isinstance(bar, L.pytorch.callbacks.ProgressBar)
            callbacks = [*callbacks, bar]
        kwargs["callbacks"] = callbacks
        fit = self.subcommand == "fit" and not config.get("fast_dev_run")
        if config.get("logger") is None:
            kwargs["logger"] = self._loggers(config) if fit else False
        elif isinstance(config["logger"], MetricsFile) and not fit:
            kwargs["logger"] = False  # an evaluation is no part of the curve
        return super().instantiate_trainer(**kwargs)

    def _loggers(self, config: Any) -> list[Any]:  # noqa: ANN401
        root = Path(config.get("default_root_dir") or ".") / "lightning_logs"
        name = f"{self.datamodule.root.name}-{type(self.model).__name__}"
        version = _claim_version(root / name)
        logger = TensorBoardLogger(root, name=name, version=version)
        return [logger, CSVLogger(root, name=name, version=version)]

    def before_fit(self) -> None:
        """Check what can be checked, and say what is about to be trained on what."""
        try:
            self._check_before_fit()
        except LLMRecError:
            # Nothing was trained: leave no empty run behind.
            for logger in self.trainer.loggers[:1]:
                folder = Path(str(logger.log_dir))
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
            raise
        trainer = self.trainer
        lines = {
            "model": type(self.model).__name__,
            **self.datamodule.summary(batch_share(trainer).size),
            "runs on": f"{trainer.world_size} x {trainer.strategy.root_device.type}, "
            f"precision {trainer.precision}",
            "run folder": trainer.log_dir,
        }
        resumed = self.config[self.subcommand].get("ckpt_path")
        lines |= {"resumed from": resumed} if resumed else {}
        if trainer.is_global_zero:
            _print_pairs(lines)

    def _check_before_fit(self) -> None:
        """Refuse settings and data that would fail later.

        Raises:
            ConfigError: a monitored metric is not computed, or K exceeds the candidates.
        """
        evaluator = self.config_init[self.subcommand]["evaluation"]
        known = [f"val/{name}" for name in metric_names(evaluator.ks)]
        for key in ("checkpoint", "early_stopping"):
            monitor = self.config[self.subcommand][key].monitor
            if monitor not in known and not monitor.startswith("train/"):
                raise ConfigError(
                    f"`{key}.monitor` is {monitor!r}, which is not computed; give "
                    f"`evaluation.ks` that K or monitor one of {known}."
                )
        self.datamodule.setup("fit")
        evaluator.check_catalogue(self.datamodule.dataset, "fit")

    def after_fit(self) -> None:
        """Evaluate the selected checkpoint in full, and say where everything lies."""
        callback = self.trainer.checkpoint_callback
        best = getattr(callback, "best_model_path", "")
        if not best or self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self.trainer.validate(self.model, self.datamodule, ckpt_path=best, verbose=False)
        run = run_directory(self.trainer)
        if not self.trainer.is_global_zero:
            return
        config = run / "config.yaml"
        title = f"{type(self.model).__name__} on {self.datamodule.root.name}"
        self._show("val", "validation")
        evaluator = self.config_init[self.subcommand]["evaluation"]
        selection = self.config[self.subcommand].checkpoint
        if evaluator.history and selection.monitor.startswith("val/"):
            picture = run / "metrics" / "curve.png"
            plot_history(evaluator.history, selection.monitor, selection.mode, picture, title)
        cost = self.cost.record()
        took = f"{self.cost.epochs} epochs, {cost['wall_seconds_per_epoch']:.2f} s each"
        took += f", and {cost['wall_seconds_per_evaluation']:.2f} s an evaluation"
        lies = {"checkpoint": best, "config": config, "metrics": run / "metrics"}
        _print_pairs({"training": took, **lies})
        command = f"python -m llmrec_pl test --config {config} --ckpt_path {best}"
        console.print(f"test it once with\n  {command}", soft_wrap=True, highlight=False)

    def validate(self, **kwargs: Any) -> None:  # noqa: ANN401
        """Validate without Lightning's own table; `after_validate` prints ours."""
        self.trainer.validate(**{**kwargs, "verbose": False})

    def test(self, **kwargs: Any) -> None:  # noqa: ANN401
        """Test without Lightning's own table; `after_test` prints ours."""
        self.trainer.test(**{**kwargs, "verbose": False})

    def predict(self, **kwargs: Any) -> None:  # noqa: ANN401
        """Predict without keeping every batch in memory; the writer has it."""
        self.trainer.predict(**{**kwargs, "return_predictions": False})

    def after_validate(self) -> None:
        """Print the tables."""
        if self.trainer.is_global_zero:
            self._show("val", "validation")
            _print_pairs({"checkpoint": self.trainer.ckpt_path})

    def after_test(self) -> None:
        """Print the tables."""
        if self.trainer.is_global_zero:
            self._show("test", "test")
            _print_pairs({"checkpoint": self.trainer.ckpt_path})

    def after_predict(self) -> None:
        """Say where the lists lie."""
        writer = self.config_init[self.subcommand]["predictions"]
        if self.trainer.is_global_zero:
            console.print(f"  lists and candidate pools: {writer.folder}", soft_wrap=True)

    def _show(self, stage: str, title: str) -> None:
        record = self.config_init[self.subcommand]["evaluation"].results[stage]
        what = f"{type(self.model).__name__} on {self.datamodule.root.name}"
        console.print(metrics_table(record, f"{title}, {what}"))
        console.print(groups_table(record, f"{title} by group"))


def run(
    args: Sequence[str], callbacks: Sequence[L.Callback] = (), *, quiet: bool = False
) -> RecommenderCLI:
    """Run one of the trainer's subcommands.

    Args:
        args: the command line without the program name.
        callbacks: added to those of the config.
        quiet: print nothing.
    """
    _quieten()
    check_configs_exist(args)
    console.quiet = quiet
    cli = RecommenderCLI(
        Recommender,
        RecDataModule,
        subclass_mode_model=True,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        seed_everything_default=2026,
        trainer_defaults={**TRAINER_DEFAULTS, "callbacks": list(callbacks)},
        save_config_callback=_SaveFitConfig,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"prog": "python -m llmrec_pl", "exit_on_error": False},
        args=list(args),
    )
    # Its threads must not outlive the interpreter, which would abort the process at its exit.
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return cli


def check_configs_exist(args: Sequence[str]) -> None:
    """Refuse a missing or malformed ``--config`` file before the parser's long usage text.

    Raises:
        ConfigError: naming the file.
    """
    for flag, value in zip(args, list(args)[1:], strict=False):
        if flag in ("--config", "-c"):
            load_yaml(value)


def _fixed_seed(seed: bool | int) -> int:
    if isinstance(seed, bool):
        raise ConfigError("`seed_everything` needs an integer, so that a run can be repeated.")
    return seed


def _print_pairs(pairs: Mapping[str, object]) -> None:
    for key, value in pairs.items():
        console.print(f"  {key + ':':<15}{value}", highlight=False, soft_wrap=True)


def _claim_version(folder: Path) -> str:
    """Make the next free ``version_<n>`` folder; two runs at once get two."""
    # Asked before the trainer exists: which of these is set depends on who started the process.
    if any(int(os.environ.get(name, "0")) > 0 for name in RANKS):
        return "unused"  # the first rank's folder is broadcast
    taken = (int(p.name[8:]) for p in folder.glob("version_*") if p.name[8:].isdigit())
    number = max(taken, default=-1) + 1
    while True:
        try:
            (folder / f"version_{number}").mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return f"version_{number}"


def _quieten() -> None:
    """Leave out hints that do not apply here, and what this module prints itself."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
    for pattern in (
        ".*does not have many workers.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*The `compute` method of metric .* was called before the `update`.*",
        ".*isinstance\\(treespec, LeafSpec\\).*",
        ".*LightningCLI's args parameter.*",
        ".*The number of training batches.*",
        ".*Experiment logs directory.*",
        # Sums over all processes; Lightning's own reduction would average averages.
        ".*It is recommended to use `self.log\\('(val|test)/.*",
    ):
        warnings.filterwarnings("ignore", pattern)
