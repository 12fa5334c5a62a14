"""Write all replies of a store as one portable file, or check such a file.

A cassette holds what was asked and answered, no keys and no headers: enough for anybody to run
`replay` and get the same export. Candidate pools are copied beside it, into FILE.pools.

Examples:
  python -m augment cassette dump augmentation/ml-100k.store --out runs/ml-100k.jsonl.gz
  python -m augment cassette dump --config FILE --set tasks.pairs.draws=3 --out hot.jsonl.gz
  python -m augment cassette verify runs/ml-100k.jsonl.gz

`dump` takes the config of the store's last run, or the one given; a replay runs and exports its
tasks. What the store was asked under other settings is kept in the cassette too.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from augment.commands.options import last_config_of
from llmrec_pl.errors import AugmentationError

if TYPE_CHECKING:
    import argparse

    from augment.cassette import Counts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="dump | verify")
    form: dict[str, Any] = {"description": __doc__, "formatter_class": parser.formatter_class}
    dump = actions.add_parser("dump", help="write one", **form)
    dump.add_argument("store", nargs="?", type=Path, metavar="STORE", help="folder of the journal")
    dump.add_argument("--out", type=Path, required=True, metavar="FILE", help="NAME.jsonl.gz")
    dump.add_argument(
        "--config", action="append", default=[], metavar="FILE", help="later files win"
    )
    dump.add_argument(
        "--set", action="append", default=[], metavar="A.B=VALUE", help="any key of the config"
    )
    check = actions.add_parser("verify", help="compute its keys anew", **form)
    check.add_argument("file", type=Path, metavar="FILE")


def run(args: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        AugmentationError: the cassette is damaged.
        ConfigError: no store is named.
    """
    from llmrec_pl.progress import ProgressReport

    if args.action == "dump":
        from augment.cassette_dump import dump
        from llmrec_pl.data.dataset import InteractionDataset

        config = last_config_of(args)
        dataset = InteractionDataset.load(config.dataset)
        with ProgressReport("writing replies", None, "requests") as bar:
            counts = dump(config.store, config, dataset, args.out, bar.advance)
        print(f"{args.out}: {_told(counts)}")
        return
    from augment.cassette import Cassette, verify

    cassette = Cassette(args.file)
    with ProgressReport("checking keys", None, "entries") as bar:
        counts = verify(cassette, bar.advance)
    print(f"{args.file}: {_told(counts)}")
    for problem in counts.problems:
        print(f"  {problem}")
    if counts.n_problems:
        raise AugmentationError(
            f"{counts.n_problems:,} entries of {str(args.file)!r} are faulty; copy it again from "
            "whoever made it."
        )


def _told(counts: Counts) -> str:
    return (
        f"{counts.replies:,} replies, {counts.vectors:,} vectors, {counts.unanswered:,} requests "
        "without an answer"
    )
