"""What was paid for, by task, model, temperature or day; and whether the ledger adds up.

Money is useful (the reply is a result), rejected (it failed validation), duplicate (another reply
had been accepted before) or unknown (nobody knows the call's outcome; its bound is shown).

Examples:
  python -m augment cost augmentation/ml-100k.store
  python -m augment cost augmentation/ml-100k.store --by task,temperature,top_p
  python -m augment cost augmentation/ml-100k.store --by day,lane --json
  python -m augment cost augmentation/ml-100k.store --ablation
  python -m augment cost augmentation/ml-100k.store --audit

`--audit` adds the ledger up again from all attempts, and fails with status 1 if it differs.
`--ablation` shows the cost half of the paper's Table 7.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

from augment.commands.options import add_store_arguments, store_of, wide_console
from llmrec_pl.errors import AugmentationError, ConfigError

if TYPE_CHECKING:
    import argparse
    import sqlite3

    from rich.table import Table

    from augment.costs import CostRow

_USES = ("useful", "rejected", "duplicate", "unknown")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    from augment.costs import DIMENSIONS

    add_store_arguments(parser)
    parser.add_argument(
        "--by",
        default="task,model",
        metavar="NAMES",
        help=f"group by, with commas: {', '.join(DIMENSIONS)} (task,model)",
    )
    parser.add_argument("--audit", action="store_true", help="add the ledger up again")
    parser.add_argument("--ablation", action="store_true", help="cost of U, I, U-I and all")
    parser.add_argument("--json", action="store_true", help="for programs; money in pico-USD")


def run(args: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        AugmentationError: the ledger is not the sum of its attempts.
        ConfigError: an unknown name to group by.
    """
    from augment.costs import DIMENSIONS, read_costs
    from augment.store import open_readonly
    from augment.tables import print_whole

    by = [name.strip() for name in args.by.split(",") if name.strip()]
    if unknown := [name for name in by if name not in DIMENSIONS]:
        raise ConfigError(
            f"cannot group by {unknown[0]!r} in `--by`; known are {', '.join(DIMENSIONS)}."
        )
    with contextlib.closing(open_readonly(store_of(args))) as db:
        db.execute("BEGIN")  # one snapshot, also during a run
        if args.audit:
            _audit(db, as_json=args.json)
        elif args.ablation:
            _ablation(db, as_json=args.json)
        else:
            rows = read_costs(db, by)
            if args.json:
                print(json.dumps([row.as_plain() for row in rows], indent=1))
            else:
                print_whole(wide_console(), _table(rows, by))


def _audit(db: sqlite3.Connection, *, as_json: bool) -> None:
    import dataclasses

    from augment.budget import read_ledger, recompute
    from augment.commands.budget import ledger_line

    kept, summed = read_ledger(db), recompute(db)
    if kept != summed:
        raise AugmentationError(
            f"the ledger says: {ledger_line(kept)}; the attempts add up to: {ledger_line(summed)}. "
            "The store was changed by hand or is damaged; see `python -m augment doctor`."
        )
    if as_json:
        print(json.dumps(dataclasses.asdict(kept), indent=1))
    else:
        print(f"the ledger is the sum of its attempts: {ledger_line(kept)}")


def _ablation(db: sqlite3.Connection, *, as_json: bool) -> None:
    import dataclasses

    from rich.table import Table

    from augment.costs import ablation_costs
    from augment.money import format_usd

    rows = ablation_costs(db)
    if as_json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
        return
    table = Table("augmentation", "task", "cost", "paper, Netflix")
    for row in rows:
        table.add_row(row.label, row.task, format_usd(row.pusd), f"${row.paper_usd}")
    wide_console().print(table)


def _table(rows: list[CostRow], by: list[str]) -> Table:
    """Return the rows; what nothing was spent on has no column."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from augment.money import format_usd

    table = Table(
        title="what was paid for",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
    )
    for name in by:
        table.add_column(name, overflow="fold", no_wrap=name == "task")
    uses = [name for name in _USES if any(_spent_on(row, name) for row in rows)]
    for name in ("calls", "accepted", "tokens in / out", *uses, "spent", "per result"):
        table.add_column(name, justify="right")
    for row in rows:
        share = "-" if row.acceptance is None else f"{row.acceptance:.1%} of {row.replies:,}"
        each = "-" if row.per_result_pusd is None else format_usd(row.per_result_pusd)
        table.add_row(
            *("-" if row.group[name] is None else escape(str(row.group[name])) for name in by),
            f"{row.calls:,}",
            share,
            f"{row.tokens_in:,} / {row.tokens_out:,}",
            *(format_usd(_spent_on(row, name)) for name in uses),
            format_usd(row.spent_pusd),
            each,
        )
    return table


def _spent_on(row: CostRow, use: str) -> int:
    """Return pico-USD; what is in flight counts as unknown."""
    waiting = row.pusd.get("in_flight", 0) if use == "unknown" else 0
    return row.pusd.get(use, 0) + waiting
