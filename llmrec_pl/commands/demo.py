"""The main job from end to end: films, candidate pools, augmentation, training, the sealed test.

Takes ML-100K where it can be had, else a simulated film data set, and says which. The
augmentation is made by heuristics, without an LLM and without a key; the tables say so.

Examples:
  python -m llmrec_pl demo
  python -m llmrec_pl demo --source ~/Downloads/ml-100k.zip
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from llmrec_pl.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    import argparse

CONFIG = Path(__file__).parents[2] / "configs" / "demo.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--source", metavar="PATH", help="ML-100K as a folder or zip")
    parser.add_argument("--config", default=str(CONFIG), help="what to train (configs/demo.yaml)")
    parser.add_argument(
        "--out", default="data/demo", metavar="DIR", help="folder of the demo's own data"
    )


def run(args: argparse.Namespace) -> None:
    """Run the seven steps, each by the command a user would type.

    Raises:
        ConfigError: the config file is missing.
    """
    if not Path(args.config).is_file():
        raise ConfigError(f"no config at {args.config!r}; run the demo in a clone of the project.")
    from llmrec_pl.cli import main

    console = Console()
    console.rule("1/7 data")
    root = _prepare(args, console)
    console.rule("2/7 features of titles, years and genres")
    main(["features", str(root), "--text", "title,year,genres", "--encoder", "tfidf"])
    console.rule("3/7 candidate pools of a base model, LightGCN")
    pools = Path(args.out) / "pools"
    base = ["--config", args.config, "--config", str(CONFIG.parent / "models" / "lightgcn.yaml")]
    config, best, _ = _fit([*base, "--data.root", str(root), "--trainer.max_epochs", "10"])
    trained = ["--config", config, "--ckpt_path", best]
    main(["predict", *trained, "--predictions.out", str(pools)])
    console.rule("4/7 augmentation by heuristics, no LLM")
    augmentation = _augment(root, pools, Path(args.out))
    console.rule("5/7 training LLMRec, models selected on the validation split")
    given = ["--data.root", str(root), "--data.augmentation", str(augmentation)]
    config, best, folder = _fit(["--config", args.config, *given])
    console.rule("6/7 the sealed test split, opened once")
    main(["test", "--config", config, "--ckpt_path", best])
    console.rule("7/7 recommendations for three users")
    main(["recommend", "--ckpt_path", best, "--random", "3"])
    console.print(f"all of it lies in {folder}", highlight=False, soft_wrap=True)


def _fit(arguments: list[str]) -> tuple[str, str, Path]:
    """Train; return the run's config, its best checkpoint and its folder."""
    from llmrec_pl import training

    # Lightning's command line reads sys.argv too and warns where it differs.
    sys.argv = sys.argv[:1]
    trainer = training.run(["fit", *arguments]).trainer
    folder = Path(trainer.log_dir or ".")
    best = trainer.checkpoint_callback.best_model_path  # type: ignore[union-attr]
    return str(folder / "config.yaml"), str(best), folder


def _augment(root: Path, pools: Path, out: Path) -> Path:
    """Run stage 1 as a process of its own: training never loads it.

    Raises:
        ConfigError: stage 1 failed; it has said why.
    """
    made = out / "augmentation"
    command = [sys.executable, "-m", "augment", "run", "--dataset", str(root)]
    command += ["--config", str(CONFIG.parent / "augment" / "demo.yaml")]
    command += ["--pool", str(pools / "candidates.parquet")]
    command += ["--store", str(out / "augmentation.store"), "--out", str(made)]
    if subprocess.run(command, check=False).returncode:
        raise ConfigError("the augmentation failed, see above.")
    return made


def _prepare(args: argparse.Namespace, console: Console) -> Path:
    from llmrec_pl.cli import run_plain

    source = ["--source", args.source] if args.source else []
    real, simulated = Path(args.out) / "ml-100k", Path(args.out) / "simulated"
    try:
        run_plain("prepare", ["ml-100k", *source, "--out", str(real), "--overwrite"])
    except DatasetError as error:
        if args.source:
            raise
        console.print(f"{error}", style="yellow", highlight=False, markup=False)
        console.print("ML-100K cannot be had here: the demo goes on with simulated films.")
        run_plain("prepare", ["simulated", "--out", str(simulated), "--overwrite"])
        return simulated
    return real
