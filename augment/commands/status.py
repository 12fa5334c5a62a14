"""Show what a store holds: planned, answered, failed, spent. Safe during a run.

Examples:
  python -m augment status augmentation/ml-100k.store
  python -m augment status augmentation/ml-100k.store --json
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("store", help="folder of the journal")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--watch", action="store_true", help="again every five seconds")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from augment.status import read_status, show_status

    console = Console()
    while True:
        status = read_status(args.store)
        if args.json:
            print(status.as_json(), flush=True)
        else:
            show_status(status, console)
        if not args.watch:
            return
        time.sleep(5)
