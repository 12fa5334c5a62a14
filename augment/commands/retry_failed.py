"""Open quarantined requests again, with their counts of tries at zero; `run` then asks them.

Worth it after a change that can mend them: another prompt needs no `retry-failed`, since it makes
new requests. What was paid for stays in the journal.

Examples:
  python -m augment retry-failed augmentation/ml-100k.store
  python -m augment retry-failed augmentation/ml-100k.store --code truncated --code not_json
  python -m augment retry-failed --config configs/augment/ml-100k.yaml --only profiles
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from augment.commands.options import add_store_arguments, kinds_of, store_of

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_store_arguments(parser)
    parser.add_argument(
        "--code", action="append", default=[], help="only those with this reason; repeatable"
    )
    parser.add_argument("--only", metavar="TASKS", help="of pairs,profiles,attributes,embed")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from augment.store import Store
    from augment.store.reopen import reopen

    kinds = sorted(kinds_of(args.only) or ())
    with Store(store_of(args), network_ok=args.i_know) as store:
        opened = store.do(lambda db: reopen(db, args.code, kinds))
    for code, n in sorted(opened.items()):
        print(f"{n:,} of {code or 'no known reason'}")
    print(f"{sum(opened.values()):,} requests planned again")
