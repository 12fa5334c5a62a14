"""What a store holds, read without disturbing who works on it."""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from augment.budget import Ledger, read_ledger
from augment.money import format_usd
from augment.store import open_readonly
from augment.store.states import State

if TYPE_CHECKING:
    import sqlite3

    from rich.console import Console


@dataclass(frozen=True)
class TaskStatus:
    """One spec: who is asked, and what became of its requests.

    Attributes:
        kind: the task.
        spec: first letters of its sha.
        provider: who answers.
        model: name of the model.
        prompt_set: name of the set.
        states: requests by state, follow-ups included.
        codes: quarantined requests by the reason.
        skipped: wanted answers that were not asked for, by the reason.
        tokens_in: as counted by the server.
        tokens_out: the same for answers.
        spent_pusd: cost, pico-USD.
    """

    kind: str
    spec: str
    provider: str
    model: str
    prompt_set: str
    states: dict[str, int]
    codes: dict[str, int]
    skipped: dict[str, int]
    tokens_in: int
    tokens_out: int
    spent_pusd: int


@dataclass(frozen=True)
class Status:
    """Everything `status` shows."""

    store: str
    tasks: list[TaskStatus]
    ledger: Ledger
    runs: list[dict[str, Any]]
    anomalies: list[dict[str, Any]] = field(default_factory=list)

    def as_json(self) -> str:
        """Return plain JSON."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False)


def read_status(store: Path | str) -> Status:
    """Read one consistent picture of a store."""
    with contextlib.closing(open_readonly(store)) as db:
        db.execute("BEGIN")  # one snapshot for all queries
        tasks = [_task(db, *row) for row in db.execute("SELECT id, sha, json FROM spec ORDER BY id")]
        runs = db.execute("SELECT id, host, pid, t0, t1, exit FROM run ORDER BY id DESC LIMIT 3")
        names = ("run", "host", "pid", "t0", "t1", "exit")
        last = [dict(zip(names, row, strict=True)) for row in runs]
        odd = [
            {"kind": kind, "detail": detail}
            for kind, detail in db.execute(
                "SELECT kind, detail FROM anomaly ORDER BY id DESC LIMIT 10"
            )
        ]
        return Status(str(store), tasks, read_ledger(db), last, odd)


def _task(db: sqlite3.Connection, spec_id: int, sha: bytes, text: str) -> TaskStatus:
    spec = json.loads(text)
    states: dict[str, int] = defaultdict(int)
    for state, n in db.execute(
        "SELECT state, count(*) FROM request WHERE spec = ? GROUP BY state", (spec_id,)
    ):
        states[State(state).name.lower()] = n
    codes = dict(
        db.execute(
            "SELECT ifnull(last_code, '?'), count(*) FROM request WHERE spec = ? AND state = ? "
            "GROUP BY 1 ORDER BY 2 DESC",
            (spec_id, State.QUARANTINED),
        )
    )
    skipped = dict(
        db.execute(
            "SELECT skip, count(*) FROM wanted WHERE spec = ? AND skip IS NOT NULL GROUP BY 1",
            (spec_id,),
        )
    )
    spent = db.execute(
        "SELECT ifnull(sum(tok_in), 0), ifnull(sum(tok_out), 0), ifnull(sum(cost_pusd), 0) "
        "FROM attempt WHERE id IN (SELECT c.attempt FROM call_item c JOIN request r "
        "ON r.id = c.request WHERE r.spec = ?)",
        (spec_id,),
    ).fetchone()
    return TaskStatus(
        spec["kind"],
        sha.hex()[:8],
        spec["provider"],
        spec["model"],
        spec["prompt_set"],
        dict(states),
        codes,
        skipped,
        *spent,
    )


def show_status(status: Status, console: Console) -> None:
    """Print a status as tables."""
    table = Table(title=f"store {status.store}", title_justify="left")
    for name in ("task", "answered by", "done", "to send", "quarantined", "unknown", "skipped"):
        table.add_column(name, justify="left" if name in ("task", "answered by") else "right")
    table.add_column("tokens in / out", justify="right")
    table.add_column("spent", justify="right")
    for task in status.tasks:
        by = task.states.get
        quarantined = "\n".join(f"{n:,} {code}" for code, n in task.codes.items()) or "0"
        skipped = "\n".join(f"{n:,} {why}" for why, n in task.skipped.items()) or "0"
        table.add_row(
            task.kind,
            f"{task.provider} / {task.model}\n{task.prompt_set or 'texts'} {task.spec}",
            f"{by('done', 0):,}",
            f"{by('planned', 0) + by('in_flight', 0) + by('in_batch', 0):,}",
            quarantined,
            f"{by('unknown', 0):,}",
            skipped,
            f"{task.tokens_in:,} / {task.tokens_out:,}",
            format_usd(task.spent_pusd),
        )
    console.print(table)
    ledger = status.ledger
    cap = "no budget set" if ledger.cap_pusd is None else f"budget {format_usd(ledger.cap_pusd)}"
    console.print(
        f"{cap}, spent {format_usd(ledger.spent_pusd)}, reserved "
        f"{format_usd(ledger.reserved_pusd)} for calls whose end is not known",
        highlight=False,
    )
    for odd in status.anomalies:
        console.print(f"anomaly: {odd['kind']}: {odd['detail']}", style="yellow", markup=False)
