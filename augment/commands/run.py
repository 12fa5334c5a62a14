"""Ask what is not answered yet, task after task, then export.

Can be killed at any moment and run again: what was answered is kept and never asked twice.
Ctrl-C once waits for calls in flight, twice drops them.

Examples:
  python -m augment run --config configs/augment/ml-100k.yaml
  python -m augment run --config configs/augment/ml-100k.yaml --provider openai --max-usd 2
  python -m augment run --config FILE --provider local --base-url http://127.0.0.1:8089/v1
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, get_args

from rich.console import Console

from augment.commands.options import add_config_arguments, config_of
from augment.specs import KINDS, Kind
from llmrec_pl.errors import ConfigError

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_config_arguments(parser)
    parser.add_argument("--only", metavar="TASKS", help=f"of {','.join(KINDS)}")
    parser.add_argument("--max-usd", metavar="USD", help="budget of the store from now on")
    parser.add_argument("--no-cap", action="store_true", help="run without a budget")
    parser.add_argument("--dry-run", action="store_true", help="estimate only, send nothing")
    parser.add_argument(
        "--ambiguous",
        choices=["retry", "hold"],
        default="retry",
        help="calls that may have been answered: send once more, or leave them to you",
    )
    parser.add_argument("--max-reject-rate", type=float, default=0.2, metavar="SHARE")
    parser.add_argument("--no-export", action="store_true", help="leave the export for later")
    parser.add_argument("--i-know", action="store_true", help="allow a network file system")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    config = config_of(args)
    from llmrec_pl.data.dataset import InteractionDataset

    dataset = InteractionDataset.load(config.dataset)
    only = _only(args.only)
    if args.dry_run:
        from augment.estimate import estimate, show

        show(estimate(config, dataset, only), Console())
        return
    from augment.clock import SystemClock
    from augment.judge import Policy
    from augment.progress import RunProgress
    from augment.runner import Options, Runner
    from augment.status import read_status, show_status
    from augment.store import Store

    options = Options(
        only=only,
        max_usd=args.max_usd,
        no_cap=args.no_cap,
        policy=Policy(ambiguous=args.ambiguous),
        max_reject_rate=args.max_reject_rate,
    )
    console = Console()
    try:
        with Store(config.store, create=True, network_ok=args.i_know) as store, RunProgress() as bar:
            runner = Runner(config, dataset, store, options, clock=SystemClock(), watcher=bar)
            asyncio.run(runner.run())
    finally:
        if (config.store / "main.sqlite").is_file():
            show_status(read_status(config.store), console)
    if args.no_export:
        return
    from augment.export import export

    made = export(config.store, config, dataset)
    console.print(
        f"{made.edges.shape[1]} edges and {len(made.features)} fields written to {config.out}\n"
        f"next: python -m llmrec_pl fit --config configs/ml-100k.yaml --data.root {config.dataset}"
        f" --data.augmentation {config.out}",
        highlight=False,
        soft_wrap=True,
    )


def _only(text: str | None) -> frozenset[Kind] | None:
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in get_args(Kind)]
    if unknown:
        raise ConfigError(f"unknown task {unknown[0]!r} in `--only`; known are {', '.join(KINDS)}.")
    return frozenset(names)  # type: ignore[arg-type]  # just checked
