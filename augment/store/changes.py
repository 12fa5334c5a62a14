"""What is written to the store, as operations on the writing connection.

Each function is one operation of a group: it is applied whole or not at all. None of them waits
or looks at the network.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from augment.errors import BudgetStop
from augment.money import format_usd
from augment.specs import TaskSpec, canonical_json
from augment.store.states import AttemptState, State

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from augment.money import Price, Usage


_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


def pack(value: object) -> bytes:
    """Compress the canonical JSON of a value."""
    return pack_text(canonical_json(value))


def pack_body(body: Mapping[str, Any]) -> bytes:
    """Compress a request's body as it is sent: its order is no part of its key, but matters.

    Servers write an answer's fields in the order of the schema's properties.
    """
    return pack_text(sent_json(body))


def sent_json(value: object) -> str:
    """Return JSON in the order of its parts."""
    return _encode(value)


def pack_text(text: str) -> bytes:
    """Compress JSON that is text already."""
    return zlib.compress(text.encode(), 1)


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One wanted answer and, unless skipped, the request that gives it."""

    entity: int
    field: int
    skip: str | None = None
    key: bytes = b""
    body: bytes = b""
    context: bytes | None = None
    bound_in: int = 0
    bound_out: int = 0


@dataclass(frozen=True, slots=True)
class ChildRow:
    """A follow-up request, already rendered."""

    key: bytes
    body: bytes
    context: bytes | None
    bound_in: int
    bound_out: int


@dataclass(frozen=True, slots=True)
class RequestChange:
    """What one send does to one request.

    Attributes:
        request: its id.
        key: its key.
        state: its new state.
        tries: added to the persisted count; -1 gives a try back.
        rejects: added.
        unknowns: added.
        code: outcome or verdict.
        detail: for people.
        validator: name of the check, "" if none was made.
        value: canonical JSON of what was accepted, whole or in part.
        vector: an accepted embedding.
        child: a follow-up.
        last: sent again only after all others.
    """

    request: int
    key: bytes
    state: State
    tries: int = 0
    rejects: int = 0
    unknowns: int = 0
    code: str = ""
    detail: str = ""
    validator: str = ""
    value: str | None = None
    vector: NDArray[np.float32] | None = None
    child: ChildRow | None = None
    last: bool = False


@dataclass(frozen=True, slots=True)
class Settlement:
    """The end of one send.

    Attributes:
        attempt: its id.
        state: how it ended.
        outcome: name of the outcome.
        t_end: wall clock, milliseconds.
        cost_pusd: what it cost; 0 if unbilled, ignored if unknown.
        raw: the exact 200 body, kept compressed; None for embeddings, whose vectors are kept.
        usage: tokens as the server counted them.
        usage_src: "server", or "bound" where the server did not say.
        changes: one for each request of the call.
    """

    attempt: int
    state: AttemptState
    outcome: str
    t_end: int
    changes: Sequence[RequestChange]
    cost_pusd: int = 0
    raw: bytes | None = None
    usage: Usage | None = None
    usage_src: str | None = None
    http: int | None = None
    elapsed_ms: int | None = None
    detail: str = ""
    finish: str | None = None
    server_request_id: str | None = None
    model_returned: str | None = None
    fingerprint: str | None = None
    anomalies: Sequence[tuple[str, str]] = field(default_factory=tuple)


def add_spec(db: sqlite3.Connection, spec: TaskSpec, now: int) -> tuple[int, bool]:
    """Register a spec; returns its id and whether all its rows are planned."""
    db.execute(
        "INSERT OR IGNORE INTO spec(sha, kind, json, created_at) VALUES (?, ?, ?, ?)",
        (spec.sha, spec.kind, canonical_json(spec.model_dump()), now),
    )
    row = db.execute("SELECT id, planned FROM spec WHERE sha = ?", (spec.sha,)).fetchone()
    return int(row[0]), bool(row[1])


def plan(db: sqlite3.Connection, spec: int, rows: Iterable[PlanRow]) -> int:
    """Add wanted answers; equal requests are kept once. Returns the number of new requests.

    A request that another spec planned and nobody sent yet becomes this spec's to send.
    """
    rows = list(rows)
    asked = [row for row in rows if row.skip is None]
    (before,) = db.execute("SELECT ifnull(max(id), 0) FROM request").fetchone()
    db.executemany(
        "INSERT INTO request(key, spec, draw, body, context, bound_in, bound_out) "
        "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT(key) DO NOTHING",
        [(r.key, spec, r.field, r.body, r.context, r.bound_in, r.bound_out) for r in asked],
    )
    ids = dict(db.execute("SELECT key, id FROM request WHERE id > ?", (before,)).fetchall())
    new = len(ids)
    for row in asked:
        if row.key not in ids:
            ids[row.key] = _known(db, spec, row)
    db.executemany(
        "INSERT OR IGNORE INTO wanted(spec, entity, field, request, context, skip) "
        "VALUES (?, ?, ?, ?, ?, ?)",
        [(spec, r.entity, r.field, ids.get(r.key), r.context, r.skip) for r in rows],
    )
    return new


def _known(
    db: sqlite3.Connection, spec: int, row: PlanRow | ChildRow, *, last: bool = False
) -> int:
    """Return the id of a request that is there already; take it over if nobody sent it yet."""
    db.execute(
        "UPDATE request SET spec = ?, context = ?, not_before = max(not_before, ?) "
        "WHERE key = ? AND state = 0 AND spec <> ?",
        (spec, row.context, last, row.key, spec),
    )
    (found,) = db.execute("SELECT id FROM request WHERE key = ?", (row.key,)).fetchone()
    return int(found)


def take_over(db: sqlite3.Connection, spec: int) -> int:
    """Make a spec's own those unsent requests that it wants and another spec planned.

    Follow-ups belong to whoever wants the request they stem from.
    """
    others = db.execute(
        "SELECT id, parent FROM request WHERE state = 0 AND spec IN (SELECT o.id FROM spec o "
        "JOIN spec me ON me.kind = o.kind AND me.id <> o.id WHERE me.id = ?)",
        (spec,),
    ).fetchall()
    moved = 0
    for request, parent in others:
        root = request
        while parent is not None:
            root = parent
            (parent,) = db.execute("SELECT parent FROM request WHERE id = ?", (root,)).fetchone()
        wants = db.execute("SELECT 1 FROM wanted WHERE request = ? AND spec = ?", (root, spec))
        if wants.fetchone():
            db.execute("UPDATE request SET spec = ? WHERE id = ?", (spec, request))
            moved += 1
    return moved


def price_id(db: sqlite3.Connection, price: Price) -> int:
    """Keep a price row, so that later changes of the price file touch no old attempt."""
    row = (price.model, price.tier, price.input, price.cached, price.output)
    dated = (*row, str(price.valid_from))
    db.execute(
        "INSERT OR IGNORE INTO price(model, tier, input, cached, output, valid_from, source) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        (*dated, price.source),
    )
    found = db.execute(
        "SELECT id FROM price WHERE model = ? AND tier = ? AND input = ? AND cached = ? AND "
        "output = ? AND valid_from = ?",
        dated,
    ).fetchone()
    return int(found[0])


def reserve(
    db: sqlite3.Connection,
    *,
    run: int,
    lane: str,
    requests: Sequence[int],
    bound_pusd: int,
    price: int | None,
    now: int,
    request_state: State = State.IN_FLIGHT,
) -> int:
    """Write the intent to send and set aside the most it can cost; returns the attempt's id.

    Raises:
        BudgetStop: what is spent, reserved and asked for exceeds the cap.
        ValueError: a request is not waiting to be sent; it must never be sent twice.
    """
    cap, spent, reserved = db.execute(
        "SELECT cap_pusd, spent_pusd, reserved_pusd FROM ledger"
    ).fetchone()
    if cap is not None and spent + reserved + bound_pusd > cap:
        raise BudgetStop(
            f"the budget of {format_usd(cap)} is used up: {format_usd(spent)} spent, "
            f"{format_usd(reserved)} reserved, the next call may cost {format_usd(bound_pusd)}. "
            "Raise it with `python -m augment budget set`, or see `python -m augment unknown "
            "list` for reservations of calls whose outcome nobody knows."
        )
    cursor = db.execute(
        "INSERT INTO attempt(run, lane, state, t_start, price, reserved_pusd) "
        "VALUES (?, ?, ?, ?, ?, ?)",
        (run, lane, AttemptState.INTENT, now, price, bound_pusd),
    )
    attempt = int(cursor.lastrowid or 0)
    for position, request in enumerate(requests):
        db.execute("INSERT INTO call_item VALUES (?, ?, ?)", (attempt, position, request))
        moved = db.execute(
            "UPDATE request SET state = ?, tries = tries + 1 WHERE id = ? AND state = ?",
            (request_state, request, State.PLANNED),
        )
        if moved.rowcount != 1:
            raise ValueError(f"request {request} is not planned; it is in flight or settled.")
    db.execute("UPDATE ledger SET reserved_pusd = reserved_pusd + ?", (bound_pusd,))
    return attempt


def settle(db: sqlite3.Connection, s: Settlement, now: int) -> bool:
    """Write the end of a send: raw body, usage, ledger, verdicts, results, follow-ups.

    Returns:
        False if the attempt was settled before (then nothing is changed).
    """
    row = db.execute(
        "SELECT state, reserved_pusd FROM attempt WHERE id = ?", (s.attempt,)
    ).fetchone()
    if row is None or row[0] not in (AttemptState.INTENT, AttemptState.UNKNOWN):
        return False
    was, reserved = row
    usage = s.usage
    db.execute(
        "UPDATE attempt SET state = ?, outcome = ?, t_end = ?, cost_pusd = ?, raw = ?, http = ?, "
        "elapsed_ms = ?, detail = ?, finish = ?, server_request_id = ?, model_returned = ?, "
        "fingerprint = ?, tok_in = ?, tok_out = ?, tok_cached = ?, tok_reason = ?, usage_src = ? "
        "WHERE id = ?",
        (
            s.state, s.outcome, s.t_end, None if s.state == AttemptState.UNKNOWN else s.cost_pusd,
            None if s.raw is None else zlib.compress(s.raw, 6), s.http, s.elapsed_ms, s.detail,
            s.finish, s.server_request_id, s.model_returned, s.fingerprint,
            usage and usage.input, usage and usage.output, usage and usage.cached,
            usage and usage.reasoning, s.usage_src, s.attempt,
        ),
    )  # fmt: skip
    if s.state != AttemptState.UNKNOWN:
        db.execute(
            "UPDATE ledger SET reserved_pusd = reserved_pusd - ?, spent_pusd = spent_pusd + ?",
            (reserved, s.cost_pusd),
        )
    late = was == AttemptState.UNKNOWN
    for change in s.changes:
        _change(db, s.attempt, change, late=late)
    for kind, detail in s.anomalies:
        anomaly(db, now, kind, detail)
    return True


def _change(db: sqlite3.Connection, attempt: int, c: RequestChange, *, late: bool) -> None:
    if c.validator:
        db.execute(
            "INSERT OR REPLACE INTO verdict VALUES (?, ?, ?, ?, ?)",
            (attempt, c.request, c.validator, c.code, c.detail),
        )
    (state,) = db.execute("SELECT state FROM request WHERE id = ?", (c.request,)).fetchone()
    if state == State.DONE or (late and c.state != State.DONE):
        return  # an accepted result stays; a late reply that mends nothing changes nothing
    if c.value is not None:
        db.execute(
            "INSERT OR REPLACE INTO result VALUES (?, ?, ?, ?)",
            (c.request, attempt, c.validator, c.value),
        )
    child = None if c.child is None else _add_child(db, c.request, c.child)
    db.execute(
        "UPDATE request SET state = ?, tries = tries + ?, rejects = rejects + ?, "
        "unknowns = unknowns + ?, last_code = ?, child = ifnull(?, child), "
        "not_before = max(not_before, ?) WHERE id = ?",
        (c.state, c.tries, c.rejects, c.unknowns, c.code, child, c.last, c.request),
    )


def _add_child(db: sqlite3.Connection, parent: int, row: ChildRow) -> int:
    spec, draw, depth = db.execute(
        "SELECT spec, draw, depth FROM request WHERE id = ?", (parent,)
    ).fetchone()
    added = db.execute(
        "INSERT INTO request(key, spec, draw, parent, depth, body, context, bound_in, bound_out) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT(key) DO NOTHING",
        (
            row.key, spec, draw, parent, depth + 1, row.body, row.context, row.bound_in,
            row.bound_out,
        ),
    )  # fmt: skip
    if added.rowcount:
        return int(added.lastrowid or 0)
    return _known(db, spec, row, last=True)  # the engine is past its place


def anomaly(db: sqlite3.Connection, now: int, kind: str, detail: str) -> None:
    """Keep something that should not happen, for `status` and `doctor`."""
    db.execute("INSERT INTO anomaly(t, kind, detail) VALUES (?, ?, ?)", (now, kind, detail))
