"""Show or set what a store may spend, over all its runs.

What is spent stays spent: a store with $3.20 spent and a budget of $5 may spend $1.80 more.
Reserved is what calls in flight, in batches or of unknown outcome may still cost.

Examples:
  python -m augment budget show augmentation/ml-100k.store
  python -m augment budget set 5 augmentation/ml-100k.store
  python -m augment budget set none --config configs/augment/ml-100k.yaml
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from augment.commands.options import add_store_arguments, store_of

if TYPE_CHECKING:
    import argparse

    from augment.budget import Ledger


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="show | set")
    form: dict[str, Any] = {"description": __doc__, "formatter_class": parser.formatter_class}
    add_store_arguments(actions.add_parser("show", help="show the ledger", **form))
    change = actions.add_parser("set", help="set the budget", **form)
    change.add_argument("usd", metavar="USD", help='USD in all, such as 5.50; "none" lifts it')
    add_store_arguments(change)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from augment.budget import read_ledger, set_cap
    from augment.money import parse_usd
    from augment.store import Store, open_readonly

    folder = store_of(args)
    if args.action == "set":
        cap = None if args.usd.lower() == "none" else parse_usd(args.usd)
        with Store(folder, network_ok=args.i_know) as store:
            store.do(lambda db: set_cap(db, cap))
    with contextlib.closing(open_readonly(folder)) as db:
        print(ledger_line(read_ledger(db)))


def ledger_line(ledger: Ledger) -> str:
    """Return a ledger as one line."""
    from augment.money import format_usd

    used = ledger.spent_pusd + ledger.reserved_pusd
    line = f"spent {format_usd(ledger.spent_pusd)}, reserved {format_usd(ledger.reserved_pusd)}"
    if ledger.cap_pusd is None:
        return f"no budget set; {line}"
    left = format_usd(max(0, ledger.cap_pusd - used))
    return f"budget {format_usd(ledger.cap_pusd)}; {line}, left {left}"
