"""Calls whose outcome nobody knows: their bound stays reserved until a person decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from augment.store.states import AttemptState, State

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection


@dataclass(frozen=True, slots=True)
class UnknownCall:
    """A call that may have been answered, and charged, without our knowing.

    Attributes:
        attempt: its id.
        t_start: when it was sent, milliseconds since 1970.
        kind: the task.
        lane: "sync", or the batch part it went with.
        why: what went wrong.
        reserved_pusd: what stays set aside.
        requests: how many requests it carried.
        held: how many of them wait for a person's word before they are asked again.
        entities: (dense id, field) of those who want the first request's answer.
    """

    attempt: int
    t_start: int
    kind: str
    lane: str
    why: str
    reserved_pusd: int
    requests: int
    held: int
    entities: list[tuple[int, int]]


def list_unknown(db: sqlite3.Connection, *, abandoned: bool = False) -> list[UnknownCall]:
    """Return the calls of unknown outcome, oldest first.

    Args:
        db: the store.
        abandoned: nobody works on the store, so that calls in flight are lost too.
    """
    rows = db.execute(
        "SELECT a.id, a.t_start, ifnull(s.kind, a.lane), a.lane, "
        "coalesce(nullif(a.detail, ''), a.outcome, 'the process died'), "
        "a.reserved_pusd, count(r.id), ifnull(sum(r.state = ?), 0), "
        "min(CASE WHEN c.pos = 0 THEN r.id END) FROM attempt a "
        "LEFT JOIN call_item c ON c.attempt = a.id LEFT JOIN request r ON r.id = c.request "
        f"LEFT JOIN spec s ON s.id = r.spec WHERE {_lost(abandoned=abandoned)} "
        "GROUP BY a.id ORDER BY a.id",
        (State.UNKNOWN,),
    ).fetchall()
    calls = []
    for attempt, sent, kind, lane, why, reserved, requests, held, first in rows:
        wanters = [] if first is None else _wanters(db, first)
        calls.append(UnknownCall(attempt, sent, kind, lane, why, reserved, requests, held, wanters))
    return calls


def count_unknown(db: sqlite3.Connection, *, abandoned: bool = False) -> int:
    """Return how many calls `list_unknown` returns."""
    where = _lost(abandoned=abandoned)
    return int(db.execute(f"SELECT count(*) FROM attempt a WHERE {where}").fetchone()[0])


def _lost(*, abandoned: bool) -> str:
    where = f"a.state = {AttemptState.UNKNOWN:d}"
    if abandoned:
        where += f" OR (a.state = {AttemptState.INTENT:d} AND a.lane IN ('sync', 'probe'))"
    return f"({where})"


def _wanters(db: sqlite3.Connection, request: int) -> list[tuple[int, int]]:
    """Return who wants a request, or the request that a follow-up stems from."""
    parent: int | None = request
    while parent is not None:
        request = parent
        (parent,) = db.execute("SELECT parent FROM request WHERE id = ?", (request,)).fetchone()
    wanters = "SELECT entity, field FROM wanted WHERE request = ? ORDER BY entity, field LIMIT 50"
    return db.execute(wanters, (request,)).fetchall()


def release(db: sqlite3.Connection, attempts: Collection[int] | None = None) -> tuple[int, int]:
    """Take a person's word that calls were not charged: free their budget, ask again.

    Args:
        db: the writing connection.
        attempts: which calls; None for all.

    Returns:
        Number of calls released, and pico-USD freed.
    """
    chosen = _chosen(db, attempts)
    freed = 0
    for attempt, reserved in chosen:
        freed += reserved
        db.execute(
            "UPDATE attempt SET state = ?, cost_pusd = 0 WHERE id = ?",
            (AttemptState.RELEASED, attempt),
        )
        db.execute(
            "UPDATE request SET unknowns = max(0, unknowns - 1) WHERE id IN "
            "(SELECT request FROM call_item WHERE attempt = ?)",
            (attempt,),
        )
        _reopen(db, attempt)
    db.execute("UPDATE ledger SET reserved_pusd = reserved_pusd - ?", (freed,))
    return len(chosen), freed


def retry(db: sqlite3.Connection, attempts: Collection[int] | None = None) -> int:
    """Ask held requests once more; what their first call may have cost stays reserved.

    Returns:
        Number of requests that are planned again.
    """
    return sum(_reopen(db, attempt) for attempt, _ in _chosen(db, attempts))


def _reopen(db: sqlite3.Connection, attempt: int) -> int:
    held = db.execute(
        "UPDATE request SET state = ? WHERE state = ? AND id IN "
        "(SELECT request FROM call_item WHERE attempt = ?)",
        (State.PLANNED, State.UNKNOWN, attempt),
    )
    return int(held.rowcount)


def _chosen(db: sqlite3.Connection, attempts: Collection[int] | None) -> list[tuple[int, int]]:
    rows = db.execute(
        "SELECT id, reserved_pusd FROM attempt WHERE state = ? ORDER BY id", (AttemptState.UNKNOWN,)
    ).fetchall()
    return [row for row in rows if attempts is None or row[0] in attempts]
