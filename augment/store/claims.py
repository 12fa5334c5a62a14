"""What is still to be sent, read in the order of planning."""

from __future__ import annotations

import contextlib
import json
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from augment.specs import TaskSpec
from augment.store.states import State
from augment.wire import TEXT_TOKENS_PER_CALL
from llmrec_pl.errors import ConfigError

if TYPE_CHECKING:
    import sqlite3
    from collections import deque
    from collections.abc import Set

_COLUMNS = (
    "id, key, spec, tries, rejects, unknowns, draw, depth, body, context, bound_in, bound_out"
)


@dataclass(frozen=True, slots=True)
class Claimed:
    """A request as the store knows it.

    Attributes:
        id: row of the store.
        key: its identity.
        spec: id of the spec that sends it.
        tries: sends that counted.
        rejects: replies that failed validation.
        unknowns: sends of unknown outcome.
        draw: number of the repeated sample.
        depth: follow-ups before it.
        packed: compressed body.
        packed_context: compressed context.
        bound_in: most input tokens.
        bound_out: most output tokens.
    """

    id: int
    key: bytes
    spec: int
    tries: int
    rejects: int
    unknowns: int
    draw: int
    depth: int
    packed: bytes
    packed_context: bytes | None
    bound_in: int
    bound_out: int

    @property
    def body(self) -> dict[str, Any]:
        """What is sent."""
        return dict(unpack(self.packed))

    @property
    def context(self) -> dict[str, Any]:
        """What validation needs beside the reply."""
        return {} if self.packed_context is None else dict(unpack(self.packed_context))


def unpack(blob: bytes) -> Any:  # noqa: ANN401  # any JSON value
    """Read what `pack` wrote."""
    return json.loads(zlib.decompress(blob))


def claim(
    db: sqlite3.Connection, spec: int, after: int, limit: int, *, last: bool = False
) -> list[Claimed]:
    """Return planned requests of a spec with ids above `after`, in order.

    Args:
        db: the store.
        spec: id of the spec.
        after: the last id that was returned before, 0 at first.
        limit: most rows.
        last: those that a crash lost and that come after all others; else only the others.
            Sent first, the same few would be in flight at each of several kills.
    """
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM request WHERE state = 0 AND spec = ? AND id > ? "
        "AND not_before = ? ORDER BY id LIMIT ?",
        (spec, after, int(last), limit),
    )
    return [Claimed(*row) for row in rows]


def take(window: deque[Claimed], most: int) -> list[Claimed]:
    """Take the requests of the next call: one, or as many texts as one call may hold.

    Args:
        window: claimed requests, at least one.
        most: requests in one call.
    """
    items = [window.popleft()]
    tokens = items[0].bound_in
    while window and len(items) < most:
        tokens += window[0].bound_in
        if tokens > TEXT_TOKENS_PER_CALL:
            break
        items.append(window.popleft())
    return items


def requests_of(db: sqlite3.Connection, attempt: int) -> list[Claimed]:
    """Return the requests of one send, in the order they were sent."""
    columns = ", ".join(f"r.{name.strip()}" for name in _COLUMNS.split(","))
    rows = db.execute(
        f"SELECT {columns} FROM call_item c JOIN request r ON r.id = c.request "
        "WHERE c.attempt = ? ORDER BY c.pos",
        (attempt,),
    )
    return [Claimed(*row) for row in rows]


def read_spec(db: sqlite3.Connection, spec: int) -> TaskSpec:
    """Return a stored spec."""
    (text,) = db.execute("SELECT json FROM spec WHERE id = ?", (spec,)).fetchone()
    return TaskSpec.model_validate_json(text)


def count_open(db: sqlite3.Connection, spec: int) -> int:
    """Return how many requests of a spec are planned and not sent."""
    row = db.execute(
        "SELECT count(*) FROM request WHERE state = ? AND spec = ?", (State.PLANNED, spec)
    )
    return int(row.fetchone()[0])


def check_limit(db: sqlite3.Connection, spec: int, keys: Set[bytes], limit: int) -> None:
    """Refuse a limited run where requests of an earlier, larger plan wait: it would send them.

    Args:
        db: the store.
        spec: id of the spec.
        keys: requests that the limit leaves; follow-ups belong to the request they stem from.
        limit: for the message.

    Raises:
        ConfigError: another request of the spec is planned and not sent.
    """
    rows = db.execute(
        "SELECT key, parent FROM request WHERE state = ? AND spec = ?", (State.PLANNED, spec)
    )
    with contextlib.closing(rows):  # a cursor left open would keep the file from being tidied
        beyond = any(_root(db, key, parent) not in keys for key, parent in rows)
    if beyond:
        raise ConfigError(
            f"`--limit {limit}` leaves less than what an earlier plan in this store left to send "
            f"({count_open(db, spec):,} requests wait). Leave the limit away or raise it to send "
            "those, or name another `--store` for a trial."
        )


def _root(db: sqlite3.Connection, key: bytes, parent: int | None) -> bytes:
    while parent is not None:
        key, parent = db.execute(
            "SELECT key, parent FROM request WHERE id = ?", (parent,)
        ).fetchone()
    return key
