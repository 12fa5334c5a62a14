"""Run a cassette through the whole engine, without a network, and compare the export.

Ends with status 1 if the export differs from that of the run that made the cassette. The pools
lie beside it, in CASSETTE.pools; the data set is the one that the cassette names, or --dataset.

Examples:
  python -m augment replay --cassette runs/ml-100k.jsonl.gz
  python -m augment replay --cassette FILE --dataset data/ml-100k --out augmentation/replayed
  python -m augment replay --cassette FILE --store augmentation/replayed.store
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llmrec_pl.errors import AugmentationError

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--cassette", type=Path, required=True, metavar="FILE")
    parser.add_argument("--dataset", type=Path, metavar="DIR", help="canonical data set folder")
    parser.add_argument("--pool", type=Path, metavar="FILE", help="candidates.parquet")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep the export there")
    parser.add_argument("--store", type=Path, metavar="DIR", help="keep the new store there")


def run(args: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        AugmentationError: the export differs.
    """
    from augment.progress import RunProgress
    from augment.replay import Replay

    replay = Replay(args.cassette, dataset=args.dataset, pool=args.pool)
    with RunProgress() as bar:
        found = replay.run(args.store, args.out, watcher=bar)
    print(f"export of the original {found.expected}")
    print(f"export of the replay   {found.content_id}")
    if found.unanswered:
        print(f"{found.unanswered:,} calls got no answer, as the cassette holds no (further) one")
    if args.out is not None:
        print(f"written to {args.out}")
    if not found.same:
        raise AugmentationError(
            f"the replay gives another export than the original, in {', '.join(found.different)}. "
            "`python -m augment cassette verify` checks the cassette; other versions of a prompt "
            "or of a check change answers."
        )
    print("same")
