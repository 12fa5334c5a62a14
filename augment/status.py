"""What a store holds, read without disturbing who works on it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table

from augment.budget import Ledger, read_ledger
from augment.money import format_usd
from augment.store import open_readonly
from augment.store.states import State
from augment.store.unknown import count_unknown
from augment.tables import print_whole

if TYPE_CHECKING:
    import sqlite3

    from rich.console import Console

_RUNS, _ANOMALIES = 3, 10
_MAY_BE_EMPTY = ("open", "quarantined", "skipped")


@dataclass(frozen=True)
class TaskStatus:
    """One spec: who is asked, and what became of what it wants.

    Attributes:
        kind: the task.
        spec: first letters of its sha.
        provider: who answers.
        model: name of the model.
        prompt_set: name of the set.
        dataset_fp: fingerprint of the data set.
        wanted: answers wanted, skipped ones included.
        states: wanted answers by the state of the request that has the last word.
        codes: those in quarantine by the reason.
        skipped: those not asked for, by the reason.
        tokens_in: of the calls this spec sent, as counted by the server.
        tokens_out: the same for answers.
        spent_pusd: what they cost, pico-USD.
    """

    kind: str
    spec: str
    provider: str
    model: str
    prompt_set: str
    dataset_fp: str
    wanted: int
    states: dict[str, int]
    codes: dict[str, int]
    skipped: dict[str, int]
    tokens_in: int
    tokens_out: int
    spent_pusd: int


@dataclass(frozen=True)
class Status:
    """Everything `status` shows.

    Attributes:
        store: the folder.
        holder: who works on it now, None if nobody does.
        tasks: in the order they were planned first.
        ledger: budget, spent and reserved, pico-USD.
        unknown_calls: calls whose outcome nobody knows.
        runs: the last ones, newest first; times in milliseconds since 1970.
        anomalies: the last things that should not have happened.
    """

    store: str
    holder: str | None
    tasks: list[TaskStatus]
    ledger: Ledger
    unknown_calls: int
    runs: list[dict[str, Any]]
    anomalies: list[dict[str, Any]] = field(default_factory=list)

    def as_json(self) -> str:
        """Return plain JSON."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False)


def read_status(store: Path | str) -> Status:
    """Read one consistent picture of a store; never writes or checkpoints.

    Raises:
        AugmentationError: there is no store, or it is newer than this program.
    """
    with contextlib.closing(open_readonly(store)) as db:
        db.execute("BEGIN")  # one snapshot for all queries
        specs = db.execute("SELECT id, sha, json FROM spec ORDER BY id").fetchall()
        names = ("run", "host", "pid", "t0", "t1", "exit")
        runs = db.execute(
            f"SELECT id, host, pid, t0, t1, exit FROM run ORDER BY id DESC LIMIT {_RUNS}"
        )
        odd = db.execute(f"SELECT kind, detail FROM anomaly ORDER BY id DESC LIMIT {_ANOMALIES}")
        holder = lock_holder(Path(store))
        return Status(
            str(store),
            holder,
            [_task(db, *row) for row in specs],
            read_ledger(db),
            count_unknown(db, abandoned=holder is None),
            [dict(zip(names, row, strict=True)) for row in runs],
            [{"kind": kind, "detail": detail} for kind, detail in odd],
        )


def lock_holder(folder: Path) -> str | None:
    """Return who works on a store, in their own words; None if nobody does."""
    try:
        handle = os.open(folder / "lock", os.O_RDONLY)
    except OSError:
        return None
    try:
        if not _is_locked(handle):
            return None
        return os.read(handle, 200).decode(errors="replace").strip() or "another process"
    finally:
        os.close(handle)


def _is_locked(handle: int) -> bool:
    """Look into the kernel's list where there is one: trying the lock could turn a run away."""
    inode = str(os.fstat(handle).st_ino)
    with contextlib.suppress(OSError):
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
        if lines:
            found = (line.split() for line in lines)
            return any(f[1] == "FLOCK" and f[-3].rpartition(":")[2] == inode for f in found)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def _task(db: sqlite3.Connection, spec_id: int, sha: bytes, text: str) -> TaskStatus:
    spec = json.loads(text)
    states: dict[str, int] = {}
    codes: dict[str, int] = {}
    for number, code, n in db.execute(
        "WITH RECURSIVE last(state, child, code) AS ("
        "SELECT r.state, r.child, r.last_code FROM wanted w JOIN request r ON r.id = w.request "
        "WHERE w.spec = ? UNION ALL SELECT c.state, c.child, c.last_code FROM last "
        f"JOIN request c ON c.id = last.child WHERE last.state = {State.FOLLOWED}) "
        f"SELECT state, ifnull(code, ''), count(*) FROM last "
        f"WHERE state <> {State.FOLLOWED} OR child IS NULL GROUP BY 1, 2 ORDER BY 3 DESC",
        (spec_id,),
    ):
        state = State(number)
        states[state.name.lower()] = states.get(state.name.lower(), 0) + n
        if state == State.QUARANTINED:
            codes[code or "?"] = n
    skipped = dict(
        db.execute(
            "SELECT skip, count(*) FROM wanted WHERE spec = ? AND skip IS NOT NULL GROUP BY 1",
            (spec_id,),
        )
    )
    used = db.execute(
        "SELECT ifnull(sum(a.tok_in), 0), ifnull(sum(a.tok_out), 0), ifnull(sum(a.cost_pusd), 0) "
        "FROM attempt a JOIN call_item c ON c.attempt = a.id AND c.pos = 0 "
        "JOIN request r ON r.id = c.request WHERE r.spec = ? AND a.state IN (1, 4)",
        (spec_id,),
    ).fetchone()
    return TaskStatus(
        spec["kind"],
        sha.hex()[:8],
        spec["provider"],
        spec["model"],
        spec["prompt_set"],
        spec["dataset_fp"],
        sum(states.values()) + sum(skipped.values()),
        states,
        codes,
        skipped,
        *used,
    )


def show_status(status: Status, console: Console) -> None:
    """Print a status as a table and lines."""
    if status.tasks:
        print_whole(console, _tasks_table(status))
    else:
        console.print(f"store {status.store}: nothing planned", markup=False, soft_wrap=True)
    ledger = status.ledger
    cap = "no budget set" if ledger.cap_pusd is None else f"budget {format_usd(ledger.cap_pusd)}"
    lines = [
        f"{cap}, spent {format_usd(ledger.spent_pusd)}, reserved "
        f"{format_usd(ledger.reserved_pusd)} for calls whose end is not known"
    ]
    if status.unknown_calls:
        lines.append(
            f"{status.unknown_calls:,} calls of unknown outcome: "
            f"python -m augment unknown list {status.store}"
        )
    if aside := sum(sum(task.codes.values()) for task in status.tasks):
        lines.append(
            f"{aside:,} requests in quarantine; to ask them again: "
            f"python -m augment retry-failed {status.store}"
        )
    if status.holder:
        lines.append(f"in use by {status.holder}")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for odd in status.anomalies:
        text = f"anomaly: {odd['kind']}: {odd['detail']}"
        console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)


def _tasks_table(status: Status) -> Table:
    """Return a row a task; a column in which nothing stands is left out."""
    table = Table(
        title=escape(f"store {status.store}"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,  # names of models and servers need the room
    )
    rows = [_row(task) for task in status.tasks]
    columns = [
        name
        for name in rows[0]
        if name not in _MAY_BE_EMPTY or any(row[name] != "0" for row in rows)
    ]
    for name in columns:
        if name == "task":
            table.add_column(name, no_wrap=True)
        elif name == "answered by":
            table.add_column(name, overflow="fold", min_width=23)
        else:
            table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(row[name] for name in columns))
    return table


def _row(task: TaskStatus) -> dict[str, str]:
    n = task.states.get
    names = ("planned", "in_flight", "in_batch", "followed", "unknown")
    waiting = {name: n(name, 0) for name in names}
    who = f"{task.model} ({task.provider})\n{task.prompt_set or 'texts'}, spec {task.spec}"
    return {
        "task": task.kind,
        "answered by": escape(who),
        "wanted": f"{task.wanted:,}",
        "done": f"{n('done', 0):,}",
        "open": _lines({name.replace("_", " "): k for name, k in waiting.items()}),
        "quarantined": _lines(task.codes),
        "skipped": _lines(task.skipped),
        "tokens in /\nout": f"{task.tokens_in:,} /\n{task.tokens_out:,}" if task.tokens_in else "0",
        "spent": format_usd(task.spent_pusd),
    }


def _lines(counts: dict[str, int]) -> str:
    return "\n".join(f"{n:,} {name}" for name, n in counts.items() if n) or "0"
