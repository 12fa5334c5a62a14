"""Runs validation again over the journal: no network, no money.

Raw replies are never rewritten. Each gets the verdict of today's check beside its old ones, and
what a request's result is follows from them. Embeddings are left out: their vectors are kept in
place of the replies, and were checked then.
"""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from augment import validate
from augment.specs import TaskSpec, Verdict, canonical_json
from augment.store.claims import read_spec, unpack
from augment.store.states import AttemptState, State

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    from augment.store import Store

BLOCK = 500
"""Requests in one transaction."""


@dataclass
class Revalidated:
    """What changed.

    Attributes:
        replies: raw replies judged.
        accepted: requests that have a result now and had none.
        rejected: requests that lost their result, by the reason.
        changed: results whose value is another now.
    """

    replies: int = 0
    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    changed: int = 0


@dataclass(frozen=True, slots=True)
class _Request:
    id: int
    spec: int
    state: State
    child: int | None
    body: bytes
    context: bytes | None


@dataclass(frozen=True, slots=True)
class _Judged:
    attempt: int
    verdict: Verdict

    @property
    def value(self) -> str | None:
        value = self.verdict.value
        return None if value is None else canonical_json(value)


class Revalidator:
    """Judges stored replies anew.

    Args:
        store: opened for work.
        repay: plan what lost its result again, which costs money at the next run; else it is
            quarantined.
        judge: the check of one reply, as in `augment.validate`.
        name: the check's name for a task and prompt set.
    """

    def __init__(
        self,
        store: Store,
        *,
        repay: bool = False,
        judge: Callable[..., Verdict] = validate.validate,
        name: Callable[..., str] = validate.validator_name,
    ) -> None:
        self.store, self.repay, self._judge, self._name = store, repay, judge, name
        self.found = Revalidated()
        self._spec: Callable[[sqlite3.Connection, int], TaskSpec] = lru_cache(256)(read_spec)

    def run(self, progress: Callable[[int], None] = lambda _: None) -> Revalidated:
        """Go through all requests with raw replies, a block a transaction.

        Args:
            progress: is told the number of requests of each block.
        """
        after, going = 0, True
        while going:
            last, n = self.store.do(partial(self._block, after=after))
            progress(n)
            after, going = last, n == BLOCK
        return self.found

    def _block(self, db: sqlite3.Connection, after: int) -> tuple[int, int]:
        rows = db.execute(
            "SELECT r.id, r.spec, r.state, r.child, r.body, r.context FROM request r JOIN spec s "
            "ON s.id = r.spec WHERE r.id > ? AND s.kind <> 'embed' ORDER BY r.id LIMIT ?",
            (after, BLOCK),
        ).fetchall()
        for number, spec, state, *rest in rows:
            self._request(db, _Request(number, spec, State(state), *rest))
        return (rows[-1][0] if rows else after), len(rows)

    def _request(self, db: sqlite3.Connection, request: _Request) -> None:
        spec = self._spec(db, request.spec)
        name, judged = self._name(spec.kind, spec.prompt_set), []
        for attempt, raw in db.execute(
            "SELECT a.id, a.raw FROM call_item c JOIN attempt a ON a.id = c.attempt "
            "WHERE c.request = ? AND a.state = ? AND a.raw IS NOT NULL ORDER BY a.id",
            (request.id, AttemptState.OK),
        ).fetchall():
            one = _Judged(attempt, self._verdict(spec, request, zlib.decompress(raw)))
            judged.append(one)
            db.execute(
                "INSERT OR REPLACE INTO verdict VALUES (?, ?, ?, ?, ?)",
                (attempt, request.id, name, one.verdict.code, one.verdict.detail[:500]),
            )
        self.found.replies += len(judged)
        if judged and request.state not in (State.IN_FLIGHT, State.IN_BATCH):
            self._conclude(db, request, judged, name)

    def _verdict(self, spec: TaskSpec, request: _Request, raw: bytes) -> Verdict:
        body = dict(unpack(request.body))
        context = {} if request.context is None else dict(unpack(request.context))
        try:
            return self._judge(spec, raw, body, context)
        except Exception as error:  # as in the engine: it costs a verdict only
            return validate.internal_error(error)

    def _conclude(
        self, db: sqlite3.Connection, request: _Request, judged: list[_Judged], name: str
    ) -> None:
        """Make result and state follow from the verdicts; an accepted result stays in place."""
        before = db.execute(
            "SELECT attempt, value FROM result WHERE request = ?", (request.id,)
        ).fetchone()
        good = [one for one in judged if one.verdict.accepted]
        if good:
            kept = next((one for one in good if before and one.attempt == before[0]), good[0])
            self._keep(db, request.id, kept, name)
            if request.state == State.DONE:
                self.found.changed += before is None or before[1] != kept.value
                return
            self.found.accepted += 1
            self._move(db, request.id, State.DONE, "accepted")
            self._spare_child(db, request.child)
            return
        if any(one.verdict.code == "internal_error" for one in judged):
            return  # a fault of the check takes nothing away
        last = judged[-1]
        partial = next((one for one in reversed(judged) if one.value is not None), None)
        if partial is not None:
            self._keep(db, request.id, partial, name)
        else:
            db.execute("DELETE FROM result WHERE request = ?", (request.id,))
        if request.state == State.DONE:
            self.found.rejected[last.verdict.code] += 1
            state = State.PLANNED if self.repay else State.QUARANTINED
            self._move(db, request.id, state, last.verdict.code)

    @staticmethod
    def _keep(db: sqlite3.Connection, request: int, one: _Judged, name: str) -> None:
        db.execute(
            "INSERT OR REPLACE INTO result VALUES (?, ?, ?, ?)",
            (request, one.attempt, name, one.value),
        )

    @staticmethod
    def _move(db: sqlite3.Connection, request: int, state: State, code: str) -> None:
        db.execute(
            "UPDATE request SET state = ?, tries = 0, rejects = 0, last_code = ? WHERE id = ?",
            (state, code, request),
        )

    @staticmethod
    def _spare_child(db: sqlite3.Connection, child: int | None) -> None:
        """Do not ask a follow-up whose question is answered, unless somebody else wants it."""
        db.execute(
            "UPDATE request SET state = ?, last_code = 'not_needed' WHERE id = ? AND state = ? "
            "AND NOT EXISTS (SELECT 1 FROM wanted w WHERE w.request = request.id)",
            (State.QUARANTINED, child, State.PLANNED),
        )
