"""The ledger's cap and what is known of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from augment.money import parse_usd
from llmrec_pl.errors import ConfigError

if TYPE_CHECKING:
    import sqlite3

    from augment.config import AugmentConfig


@dataclass(frozen=True, slots=True)
class Ledger:
    """What a store may spend, has spent and has set aside, pico-USD."""

    cap_pusd: int | None
    spent_pusd: int
    reserved_pusd: int


def read_ledger(db: sqlite3.Connection) -> Ledger:
    """Return the ledger as committed."""
    row = db.execute("SELECT cap_pusd, spent_pusd, reserved_pusd FROM ledger").fetchone()
    return Ledger(*row)


def set_cap(db: sqlite3.Connection, cap_pusd: int | None) -> None:
    """Set the budget of a store; None lifts it. What is spent stays spent."""
    db.execute("UPDATE ledger SET cap_pusd = ?", (cap_pusd,))


def agree(
    db: sqlite3.Connection,
    config: AugmentConfig,
    *,
    max_usd: str | None,
    no_cap: bool,
    free: bool,
) -> None:
    """Set the budget that a command and its config ask for, before anything is reserved.

    Args:
        db: the writing connection.
        config: its `max_usd` counts where the command names none, unless the budget was set
            after it was first taken: else each run would undo `augment budget set`.
        max_usd: the budget from now on, in USD; None leaves it to the config.
        no_cap: lift the budget.
        free: nothing will be charged, so that none is needed.

    Raises:
        ConfigError: money would be spent and there is no budget, or it is no amount.
    """
    if no_cap:
        set_cap(db, None)
        return
    given = config.max_usd if max_usd is None and not _was_taken(db, config) else max_usd
    if given is not None:
        set_cap(db, parse_usd(given))
    elif not free and read_ledger(db).cap_pusd is None:
        raise ConfigError(
            "this costs money and the store has no budget: say `--max-usd 5` (see `python -m "
            "augment estimate` for how much), or `--no-cap`."
        )


def _was_taken(db: sqlite3.Connection, config: AugmentConfig) -> bool:
    """Return whether the last run had this `max_usd` already, and there is a budget since."""
    row = db.execute(
        "SELECT r.config FROM ledger l, run r WHERE r.config IS NOT NULL AND l.cap_pusd IS NOT "
        "NULL ORDER BY r.id DESC LIMIT 1"
    ).fetchone()
    return row is not None and bool(json.loads(row[0]).get("max_usd") == config.max_usd)


def recompute(db: sqlite3.Connection) -> Ledger:
    """Add the ledger up from the attempts; equals `read_ledger` at every committed state."""
    spent, reserved = db.execute(
        "SELECT ifnull(sum(CASE WHEN state IN (1, 4) THEN cost_pusd END), 0), "
        "ifnull(sum(CASE WHEN state IN (0, 3) THEN reserved_pusd END), 0) FROM attempt"
    ).fetchone()
    (cap,) = db.execute("SELECT cap_pusd FROM ledger").fetchone()
    return Ledger(cap, spent, reserved)
