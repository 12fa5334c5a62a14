"""The main job from end to end: raw films, features, training, the sealed test, recommendations.

Takes ML-100K where it can be had, else a simulated film data set, and says which.

Examples:
  python -m llmrec_pl demo
  python -m llmrec_pl demo --source ~/Downloads/ml-100k.zip
"""

from __future__ import annotations

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
    """Run the five steps, each by the command a user would type.

    Raises:
        ConfigError: the config file is missing.
    """
    if not Path(args.config).is_file():
        raise ConfigError(f"no config at {args.config!r}; run the demo in a clone of the project.")
    from llmrec_pl import training
    from llmrec_pl.cli import main

    console = Console()
    console.rule("1/5 data")
    root = _prepare(args, console)
    console.rule("2/5 features of titles, years and genres")
    main(["features", str(root), "--text", "title,year,genres", "--encoder", "tfidf"])
    console.rule("3/5 training, models selected on the validation split")
    # Lightning's command line reads sys.argv too and warns where it differs.
    sys.argv = sys.argv[:1]
    fit = ["fit", "--config", args.config, "--data.root", str(root)]
    trainer = training.run(fit).trainer
    best = Path(trainer.checkpoint_callback.best_model_path)  # type: ignore[union-attr]
    run_folder = Path(trainer.log_dir or ".")
    console.rule("4/5 the sealed test split, opened once")
    config = run_folder / "config.yaml"
    main(["test", "--config", str(config), "--ckpt_path", str(best)])
    console.rule("5/5 recommendations for three users")
    main(["recommend", "--ckpt_path", str(best), "--random", "3"])
    console.print(f"all of it lies in {run_folder}", highlight=False, soft_wrap=True)


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
