"""Calls whose outcome nobody knows, after a crash, a lost connection or a time-out.

The provider may have answered and charged them; what each may have cost at most stays reserved.
After a crash, the next `run`, `release` or `retry` settles those whose reply had arrived.

Examples:
  python -m augment unknown list augmentation/ml-100k.store
  python -m augment unknown retry augmentation/ml-100k.store
  python -m augment unknown release augmentation/ml-100k.store --id 17 --id 18
  python -m augment unknown release augmentation/ml-100k.store --all

`release`: you looked at the provider's bill, they were not charged; frees their reservation and
plans again what waits for your word. `retry`: plans that again too, but keeps the reservation.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from augment.commands.options import add_store_arguments, store_of, wide_console
from llmrec_pl.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="list | release | retry")
    form: dict[str, Any] = {"description": __doc__, "formatter_class": parser.formatter_class}
    show = actions.add_parser("list", help="show them", **form)
    add_store_arguments(show)
    show.add_argument("--json", action="store_true", help="for programs")
    for name, text in (("release", "they were not charged"), ("retry", "ask once more")):
        action = actions.add_parser(name, help=text, **form)
        add_store_arguments(action)
        action.add_argument("--id", type=int, action="append", help="one call; repeatable")
        action.add_argument("--all", action="store_true", help="every call on the list")


def run(args: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        ConfigError: `release` without saying which, or an id that is no call of unknown outcome.
    """
    from augment.clock import SystemClock
    from augment.judge import Policy
    from augment.money import format_usd
    from augment.recover import recover
    from augment.store import Store
    from augment.store.unknown import list_unknown, release, retry

    folder = store_of(args)
    if args.action == "list":
        _list(folder, as_json=args.json)
        return
    if args.action == "release" and not (args.id or args.all):
        raise ConfigError("which calls were not charged? Say `--id 17` (repeatable) or `--all`.")
    chosen = None if args.all else args.id
    with Store(folder, network_ok=args.i_know) as store:
        recover(store, Policy(ambiguous="hold"), SystemClock().wall_ms())
        there = store.do(lambda db: {call.attempt for call in list_unknown(db)})
        if wrong := sorted(set(chosen or ()) - there):
            raise ConfigError(
                f"no call of unknown outcome has the id {wrong[0]}; "
                f"`python -m augment unknown list {folder}` shows them."
            )
        if args.action == "retry":
            n = store.do(lambda db: retry(db, chosen))
            print(f"{n:,} requests planned again; their reservations stay")
        else:
            n, freed = store.do(lambda db: release(db, chosen))
            print(f"{n:,} calls released, {format_usd(freed)} free again")


def _list(folder: Path, *, as_json: bool) -> None:
    import dataclasses
    import json
    from datetime import UTC, datetime

    from rich.table import Table

    from augment.money import format_usd
    from augment.names import Names
    from augment.status import lock_holder
    from augment.store import open_readonly
    from augment.store.unknown import list_unknown

    with contextlib.closing(open_readonly(folder)) as db:
        calls = list_unknown(db, abandoned=lock_holder(folder) is None)
        names = Names.of_last_run(db)
    shown = [[names.of(call.kind, *wanter) for wanter in call.entities] for call in calls]
    if as_json:
        rows = [
            {**dataclasses.asdict(c), "wanted_by": w} for c, w in zip(calls, shown, strict=True)
        ]
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    if not calls:
        print("no call of unknown outcome")
        return
    table = Table(title=f"calls of unknown outcome, {len(calls):,}", title_justify="left")
    for column in ("id", "sent (UTC)", "task", "wanted by", "why", "held", "reserved"):
        table.add_column(column, overflow="fold")
    for call, wanters in zip(calls, shown, strict=True):
        sent = datetime.fromtimestamp(call.t_start / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
        more = f" and {len(wanters) - 3} more" if len(wanters) > 3 else ""
        held = f"{call.held} of {call.requests}"
        who, cost = "; ".join(wanters[:3]) + more, format_usd(call.reserved_pusd)
        table.add_row(str(call.attempt), sent, call.kind, who, call.why, held, cost)
    wide_console().print(table, markup=False)
