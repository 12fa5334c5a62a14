"""Show what a store holds: planned, answered, failed, spent. Safe during a run.

Examples:
  python -m augment status augmentation/ml-100k.store
  python -m augment status --config configs/augment/ml-100k.yaml --watch
  python -m augment status augmentation/ml-100k.store --json
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from augment.commands.options import add_store_arguments, store_of, wide_console

if TYPE_CHECKING:
    import argparse

INTERVAL = 5.0
"""Seconds between two looks of `--watch`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_store_arguments(parser)
    parser.add_argument("--json", action="store_true", help="for programs; money in pico-USD")
    parser.add_argument("--watch", action="store_true", help="again every five seconds")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from augment.status import read_status, show_status

    console, folder = wide_console(), store_of(args)
    while True:
        status = read_status(folder)
        if args.json:
            print(status.as_json(), flush=True)
        else:
            if args.watch and console.is_terminal:
                console.clear()
            show_status(status, console)
        if not args.watch:
            return
        time.sleep(INTERVAL)
