"""Parts of a batch: which requests lie in which file, and how far each file has come.

A part's requests have one attempt each, written when the part is built: they are claimed by
nobody else until an answer, or the word that there is none, settles them.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from augment.store.changes import reserve
from augment.store.lock import boot_id
from augment.store.states import AttemptState, State
from llmrec_pl import __version__
from llmrec_pl.errors import AugmentationError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection, Sequence

    from augment.specs import Endpoint

FOLDER = "batches"
"""Where the files of parts lie in a store."""


class PartState(StrEnum):
    """How far a part has come; each is committed before the next remote call."""

    BUILT = "built"
    HANDED = "handed"
    """Built for somebody else to answer; never submitted, nothing reserved."""
    UPLOADING = "uploading"
    UPLOADED = "uploaded"
    CREATING = "creating"
    CREATED = "created"
    ENDED = "ended"
    DOWNLOADED = "downloaded"
    INGESTED = "ingested"
    DISCARDED = "discarded"


@dataclass(frozen=True, slots=True)
class Part:
    """A part as the store knows it.

    Attributes:
        uuid: its name, also in the file's name and the remote metadata.
        state: how far it has come.
        spec: row of the spec whose requests it holds.
        sha: sha256 of the file.
        n: lines.
        size: bytes of the file.
        endpoint: where its requests go.
        file_id: remote id of the uploaded file.
        remote_id: id of the remote batch.
        remote_status: as last heard.
        out_file: remote id of the file of answers.
        err_file: remote id of the file of errors.
        out_sha: sha256 of the downloaded answers.
        err_sha: sha256 of the downloaded errors.
        reserved_pusd: what was set aside when it was built.
        detail: JSON: usage, counts and errors that the provider reported.
        t: when it came to its state, milliseconds since 1970.
    """

    uuid: str
    state: PartState
    spec: int
    sha: bytes
    n: int
    size: int
    endpoint: Endpoint
    file_id: str | None
    remote_id: str | None
    remote_status: str | None
    out_file: str | None
    err_file: str | None
    out_sha: bytes | None
    err_sha: bytes | None
    reserved_pusd: int
    detail: str | None
    t: int


@dataclass(frozen=True, slots=True)
class NewPart:
    """A file that was just written."""

    uuid: str
    state: PartState
    spec: int
    sha: bytes
    size: int
    endpoint: Endpoint
    lines: Sequence[PartLine]


@dataclass(frozen=True, slots=True)
class PartLine:
    """One line of a file: a request, its name there, and the most it can cost."""

    request: int
    custom_id: str
    bound_pusd: int


@dataclass(frozen=True, slots=True)
class Sent:
    """The attempt behind a line."""

    part: str
    attempt: int
    state: AttemptState
    reserved_pusd: int
    price: int | None


_COLUMNS = ", ".join("bytes" if name == "size" else name for name in Part.__slots__)
_SENT = (
    "SELECT l.part, l.attempt, a.state, a.reserved_pusd, a.price FROM batch_line l "
    "JOIN attempt a ON a.id = l.attempt "
)
_OPEN = f"a.state = {AttemptState.INTENT:d}"


def begin_run(db: sqlite3.Connection, config: str, now: int) -> int:
    """Note that a process works on the store; returns the row."""
    cursor = db.execute(
        "INSERT INTO run(host, pid, boot, version, config, t0) VALUES (?, ?, ?, ?, ?, ?)",
        (socket.gethostname(), os.getpid(), boot_id(), __version__, config, now),
    )
    return int(cursor.lastrowid or 0)


def add_part(
    db: sqlite3.Connection, part: NewPart, *, run: int, price: int | None, now: int
) -> None:
    """Write a part with the intent to send each of its requests, and set aside what they may cost.

    Raises:
        BudgetStop: that exceeds the cap.
        ValueError: a request is not waiting to be sent.
    """
    total = sum(line.bound_pusd for line in part.lines)
    db.execute(
        "INSERT INTO batch_part(uuid, state, spec, sha, n, bytes, endpoint, reserved_pusd, t) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            part.uuid, part.state, part.spec, part.sha, len(part.lines), part.size,
            part.endpoint, total, now,
        ),
    )  # fmt: skip
    for line in part.lines:
        attempt = _attempt(db, part.uuid, line.request, run, line.bound_pusd, price, now)
        db.execute("INSERT INTO batch_line VALUES (?, ?, ?)", (part.uuid, line.custom_id, attempt))


def _attempt(
    db: sqlite3.Connection,
    uuid: str,
    request: int,
    run: int,
    bound: int,
    price: int | None,
    now: int,
) -> int:
    return reserve(
        db,
        run=run,
        lane=f"batch:{uuid}",
        requests=[request],
        bound_pusd=bound,
        price=price,
        now=now,
        request_state=State.IN_BATCH,
    )


def read_part(db: sqlite3.Connection, name: str) -> Part:
    """Return a part by its uuid or the first letters of it.

    Raises:
        AugmentationError: no part is called so, or several are.
    """
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM batch_part WHERE substr(uuid, 1, ?) = ? LIMIT 2",
        (len(name), name),
    ).fetchall()
    if len(rows) != 1 or not name:
        fault = "several parts begin" if rows else "no part of the store begins"
        raise AugmentationError(f"{fault} with {name!r}; see `python -m augment batch list`.")
    return _part(rows[0])


def list_parts(db: sqlite3.Connection, states: Collection[PartState] = ()) -> list[Part]:
    """Return parts in the order of building; all, or those in some states."""
    rows = db.execute(f"SELECT {_COLUMNS} FROM batch_part ORDER BY rowid").fetchall()
    parts = [_part(row) for row in rows]
    return [part for part in parts if not states or part.state in states]


def _part(row: tuple[Any, ...]) -> Part:
    return Part(row[0], PartState(row[1]), *row[2:])


def move(
    db: sqlite3.Connection, uuid: str, state: PartState, now: int, **columns: str | bytes | None
) -> None:
    """Write that a part has come to a state, with what became known on the way."""
    names = "".join(f", {name} = ?" for name in columns)
    db.execute(
        f"UPDATE batch_part SET state = ?, t = ?{names} WHERE uuid = ?",
        (state, now, *columns.values(), uuid),
    )


def lines_named(db: sqlite3.Connection, custom_id: str, part: str | None = None) -> list[Sent]:
    """Return the attempts behind a name in answer files, those that wait for an answer first.

    A request can have gone out in several parts, one after the other.
    """
    where, values = "l.custom_id = ?", [custom_id]
    if part is None:
        where += " AND l.part IN (SELECT uuid FROM batch_part)"  # lets the key's index be used
    else:
        where += " AND l.part = ?"
        values.append(part)
    rows = db.execute(
        f"{_SENT} WHERE {where} ORDER BY {_OPEN} DESC, a.state = ? DESC, a.id DESC",
        (*values, AttemptState.UNKNOWN),
    )
    return [Sent(part, i, AttemptState(s), *rest) for part, i, s, *rest in rows]


def open_lines(db: sqlite3.Connection, uuid: str, after: int, limit: int) -> list[Sent]:
    """Return attempts of a part that nothing has settled, with ids above `after`, in order."""
    rows = db.execute(
        f"{_SENT} WHERE l.part = ? AND a.id > ? AND {_OPEN} ORDER BY a.id LIMIT ?",
        (uuid, after, limit),
    )
    return [Sent(part, i, AttemptState(s), *rest) for part, i, s, *rest in rows]


def count_lines(db: sqlite3.Connection, uuid: str) -> dict[AttemptState, int]:
    """Return how many lines of a part ended in which way."""
    rows = db.execute(
        "SELECT a.state, count(*) FROM batch_line l JOIN attempt a ON a.id = l.attempt "
        "WHERE l.part = ? GROUP BY a.state",
        (uuid,),
    )
    return {AttemptState(state): n for state, n in rows}


def tokens_of(db: sqlite3.Connection, uuid: str) -> tuple[int, int]:
    """Return the tokens, in and out, that the answers of a part say they used."""
    row = db.execute(
        "SELECT ifnull(sum(a.tok_in), 0), ifnull(sum(a.tok_out), 0) FROM batch_line l "
        "JOIN attempt a ON a.id = l.attempt WHERE l.part = ? AND a.state = ?",
        (uuid, AttemptState.OK),
    ).fetchone()
    return int(row[0]), int(row[1])


def most_tokens(db: sqlite3.Connection, uuid: str) -> int:
    """Return the most input tokens that the requests of a part can have."""
    row = db.execute(
        "SELECT ifnull(sum(r.bound_in), 0) FROM batch_line l JOIN call_item c "
        "ON c.attempt = l.attempt JOIN request r ON r.id = c.request WHERE l.part = ?",
        (uuid,),
    ).fetchone()
    return int(row[0])


def take_back(db: sqlite3.Connection, sent: Sent, custom_id: str, now: int) -> Sent | None:
    """Ready a line for an answer that comes after it was given up; None if nobody waits for it.

    Returns:
        The new attempt, if the request was still planned; it lies in no other part then.

    Raises:
        BudgetStop: what the answer may have cost exceeds the cap.
    """
    request, state, run = db.execute(
        "SELECT r.id, r.state, a.run FROM attempt a JOIN call_item c ON c.attempt = a.id "
        "JOIN request r ON r.id = c.request WHERE a.id = ?",
        (sent.attempt,),
    ).fetchone()
    given_up = (AttemptState.UNBILLED, AttemptState.RELEASED)
    if state != State.PLANNED or sent.state not in given_up:
        return None
    attempt = _attempt(db, sent.part, request, run, sent.reserved_pusd, sent.price, now)
    db.execute(
        "UPDATE batch_line SET attempt = ? WHERE part = ? AND custom_id = ?",
        (attempt, sent.part, custom_id),
    )
    return Sent(sent.part, attempt, AttemptState.INTENT, sent.reserved_pusd, sent.price)
