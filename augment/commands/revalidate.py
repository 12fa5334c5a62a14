"""Judge all stored replies again with this version's checks; sends nothing, costs nothing.

Run it after an update that changed a check. A reply that passes now becomes a result. A request
that loses its result is set aside, or with `--repay` asked again at the next run.

Examples:
  python -m augment revalidate augmentation/ml-100k.store
  python -m augment revalidate augmentation/ml-100k.store --repay
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from augment.commands.options import add_store_arguments, store_of

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_store_arguments(parser)
    parser.add_argument(
        "--repay", action="store_true", help="ask again what is no longer accepted (costs money)"
    )


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from augment.revalidate import Revalidator
    from augment.store import Store
    from llmrec_pl.progress import ProgressReport

    with (
        Store(store_of(args), network_ok=args.i_know) as store,
        ProgressReport("judging stored replies", None, "requests") as progress,
    ):
        found = Revalidator(store, repay=args.repay).run(progress.advance)
    lost = sum(found.rejected.values())
    print(f"{found.replies:,} replies judged: {found.accepted:,} requests newly accepted,")
    print(f"{lost:,} no longer accepted, {found.changed:,} with another value")
    for code, n in found.rejected.most_common():
        print(f"  {n:,} {code}")
    if lost:
        what = "planned again; `run` asks them" if args.repay else "set aside; `--repay` asks again"
        print(f"what is no longer accepted was {what}")
