"""Write what was answered as the folder that the trainer reads.

A pure function of store and data set: the same store gives the same bytes.

Examples:
  python -m augment export --config configs/augment/ml-100k.yaml
  python -m augment export --config FILE --require-complete 0.98
  python -m augment export --config FILE --placebo shuffled-profiles --out augmentation/shuffled
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from augment.commands.options import add_config_arguments, config_of
from augment.placebo import PLACEBOS

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_config_arguments(parser)
    parser.add_argument(
        "--require-complete", type=float, default=0.0, metavar="SHARE", help="fail below it"
    )
    parser.add_argument("--placebo", choices=PLACEBOS, help="a control, damaged on purpose")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    config = config_of(args)
    from augment.export import export
    from llmrec_pl.data.dataset import InteractionDataset

    dataset = InteractionDataset.load(config.dataset)
    made = export(
        config.store,
        config,
        dataset,
        require_complete=args.require_complete,
        placebo=args.placebo,
    )
    Console().print(
        f"{made.edges.shape[1]} edges and {len(made.features)} fields written to {made.path}, "
        f"content id {made.content_id[:12]}",
        highlight=False,
        soft_wrap=True,
    )
