"""Check versions, the store's disk, content and ledger, the key's variable and the address.

Changes nothing, and never shows a key. Fails with status 1 if something is broken. Checking a
large store reads all of it.

Examples:
  python -m augment doctor augmentation/ml-100k.store
  python -m augment doctor --config configs/augment/ml-100k.yaml --provider openai
  python -m augment doctor --config FILE --online
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from augment.commands.options import add_config_arguments, config_of, wide_console

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from augment.checks import Check

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("folder", nargs="?", metavar="STORE", help="folder of the journal")
    parser.add_argument("--online", action="store_true", help="ask each address, with the key")
    parser.add_argument("--json", action="store_true", help="for programs")
    add_config_arguments(parser, required=False)


def run(args: argparse.Namespace) -> None:
    """Run the command; status 1 if a check fails."""
    from rich.table import Table

    found = list(_checks(args))
    if args.json:
        print(json.dumps([dataclasses.asdict(check) for check in found], indent=1))
    else:
        table = Table("check", "", "found", title="doctor", title_justify="left")
        for check in found:
            table.add_row(check.name, f"[{_COLOURS[check.verdict]}]{check.verdict}", check.text)
        wide_console().print(table)
    if any(check.verdict == "fail" for check in found):
        sys.exit(1)


def _checks(args: argparse.Namespace) -> Iterator[Check]:
    from augment.checks import provider_checks, store_checks, versions

    config = config_of(args) if args.config else None
    yield from versions()
    folder = args.folder or (config.store if config else args.store)
    if folder is not None:
        yield from store_checks(Path(folder))
    if config is not None:
        yield from provider_checks(config, online=args.online)
