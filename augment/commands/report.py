"""Score what a store was answered: against held-out items, and against known facts.

Pairs: how often the most liked candidate is an item of the validation split, against one random
pick in the same pools. Attributes and profiles: against columns of the data set's own tables, or
of files given by --truth, beside what always saying the most frequent answer would get. And how
many replies each model, temperature, top-p and prompt set needed. Memorisation: whether the model
knows the data set by heart, against controls that it cannot know. All settings in the store are
scored side by side; the test split stays sealed.

Prints tables; writes report.json, report.md and pictures into --out, by default STORE/report.

Examples:
  python -m augment report --config configs/augment/ml-100k.yaml
  python -m augment report --config FILE --truth items=omdb.jsonl --truth users=people.csv
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, get_args

from rich.console import Console

from augment.commands.options import add_config_arguments, config_of
from llmrec_pl.errors import ConfigError

if TYPE_CHECKING:
    import argparse

    from augment.truth import Side


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_config_arguments(parser, out="folder of the report (STORE/report)")
    parser.add_argument(
        "--truth",
        action="append",
        default=[],
        metavar="SIDE=FILE",
        help="items=FILE or users=FILE with truth columns, original ids first; repeatable",
    )


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    files = _files(args.truth)
    config = config_of(args)
    from augment.report import measure, write_report
    from augment.report_view import show
    from llmrec_pl.data.dataset import InteractionDataset

    found = measure(config.store, config, InteractionDataset.load(config.dataset), files)
    out = Path(args.out) if args.out else config.store / "report"
    if args.out is None:
        out.mkdir(mode=0o700, exist_ok=True)  # as private as the store it lies in
    written = write_report(found, out)  # first: who reads the tables may close the pipe early
    console = Console()
    show(found, console)
    names = ", ".join(path.name for path in written)
    console.print(f"written to {out}: {names}", highlight=False, soft_wrap=True)


def _files(given: list[str]) -> dict[Side, Path]:
    from augment.truth import Side

    files: dict[Side, Path] = {}
    for text in given:
        side, equals, path = text.partition("=")
        if not equals or side not in get_args(Side):
            raise ConfigError(f"`--truth {text}` must read items=FILE or users=FILE.")
        files[side] = Path(path)  # type: ignore[index]  # just checked
    return files
