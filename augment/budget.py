"""The ledger's cap and what is known of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3


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


def recompute(db: sqlite3.Connection) -> Ledger:
    """Add the ledger up from the attempts; equals `read_ledger` at every committed state."""
    spent, reserved = db.execute(
        "SELECT ifnull(sum(CASE WHEN state IN (1, 4) THEN cost_pusd END), 0), "
        "ifnull(sum(CASE WHEN state IN (0, 3) THEN reserved_pusd END), 0) FROM attempt"
    ).fetchone()
    (cap,) = db.execute("SELECT cap_pusd FROM ledger").fetchone()
    return Ledger(cap, spent, reserved)
