"""Opens quarantined requests again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from augment.store.states import State

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection

    from augment.specs import Kind

_NEEDED = (
    f"(NOT EXISTS (SELECT 1 FROM request p WHERE p.id = r.parent AND p.state = {State.DONE:d}) "
    "OR EXISTS (SELECT 1 FROM wanted w WHERE w.request = r.id))"
)


def reopen(
    db: sqlite3.Connection, codes: Collection[str] = (), kinds: Collection[Kind] = ()
) -> dict[str, int]:
    """Plan quarantined requests again, with their counts of tries and rejects at zero.

    A follow-up whose question is answered by now stays as it is, unless it is wanted itself.

    Args:
        db: the writing connection.
        codes: reasons of quarantine; none for all.
        kinds: tasks; none for all.

    Returns:
        Number of requests opened, by the reason they were quarantined for.
    """
    where, values = ["r.state = ?", _NEEDED], [State.QUARANTINED, *codes, *kinds]
    for column, chosen in (("r.last_code", codes), ("s.kind", kinds)):
        if chosen:
            where.append(f"{column} IN ({', '.join('?' * len(chosen))})")
    found = db.execute(
        "SELECT r.id, ifnull(r.last_code, '') FROM request r JOIN spec s ON s.id = r.spec WHERE "
        + " AND ".join(where),
        values,
    ).fetchall()
    opened: dict[str, int] = {}
    for request, code in found:
        db.execute(
            "UPDATE request SET state = ?, tries = 0, rejects = 0 WHERE id = ?",
            (State.PLANNED, request),
        )
        opened[code] = opened.get(code, 0) + 1
    return opened
