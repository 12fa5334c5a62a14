"""What the last process left: bodies in the spool, intents without an end, orphan vectors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from augment.classify import Classified, Outcome
from augment.judge import CRASHED, Policy, judge_failure, judge_paid, judge_reply
from augment.money import Price
from augment.specs import TaskSpec, canonical_json
from augment.store import AttemptState, RequestChange, Settlement, State
from augment.store.claims import read_spec, requests_of

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from augment.store import Store
    from augment.store.claims import Claimed


@dataclass(frozen=True, slots=True)
class Recovered:
    """What was found on opening.

    Attributes:
        from_spool: replies that had arrived and were not committed.
        adopted: calls settled from vectors that were committed without them.
        unknown: calls that may have been answered; their bound stays reserved.
    """

    from_spool: int = 0
    adopted: int = 0
    unknown: int = 0

    def __str__(self) -> str:
        return (
            f"{self.from_spool} replies taken from the spool, {self.adopted} from vectors, "
            f"{self.unknown} calls of unknown outcome (`python -m augment unknown list`)"
        )


def recover(store: Store, policy: Policy, now: int) -> Recovered:
    """Settle what can be settled, and mark the rest unknown; then nothing is in flight.

    Intents of batch parts are left to the batch commands.

    Args:
        store: just opened.
        policy: whether a call of unknown outcome is sent again.
        now: wall clock, milliseconds.
    """
    spooled = adopted = unknown = 0
    for attempt, body in list(store.spool.pending()):
        intent = store.do(partial(_intent, attempt=attempt))
        if intent is None:
            store.spool.settled(attempt)
            continue
        store.settle(_replied(intent, body, policy, now)).result()
        spooled += 1
    for attempt in store.do(_open_attempts):
        intent = store.do(partial(_intent, attempt=attempt))
        if intent is None:
            continue
        known = store.vectors.known(item.key for item in intent.items)
        embed = intent.spec is not None and intent.spec.kind == "embed"
        if embed and len(known) == len(intent.items):
            store.settle(_adopted(store, intent, now)).result()
            adopted += 1
        else:
            lost = Classified(Outcome.ambiguous, "unknown", None, CRASHED, "the process died")
            store.settle(
                judge_failure(intent.items, lost, attempt=attempt, policy=policy, now=now)
            ).result()
            unknown += 1
    return Recovered(spooled, adopted, unknown)


def _replied(intent: _Intent, body: bytes, policy: Policy, now: int) -> Settlement:
    paid: dict[str, Any] = {
        "attempt": intent.attempt,
        "price": intent.price,
        "reserved": intent.reserved,
        "now": now,
    }
    if intent.spec is None:
        return judge_paid(body, **paid)
    return judge_reply(intent.spec, intent.items, body, policy=policy, **paid)


@dataclass(frozen=True, slots=True)
class _Intent:
    """A send without an end; `spec` is None where it only asked what a server can do."""

    attempt: int
    reserved: int
    spec: TaskSpec | None
    items: Sequence[Claimed]
    price: Price | None


def _open_attempts(db: sqlite3.Connection) -> list[int]:
    rows = db.execute(
        "SELECT id FROM attempt WHERE state = ? AND lane IN ('sync', 'probe') ORDER BY id",
        (AttemptState.INTENT,),
    )
    return [row[0] for row in rows]


def _intent(db: sqlite3.Connection, attempt: int) -> _Intent | None:
    row = db.execute(
        "SELECT state, reserved_pusd, price FROM attempt WHERE id = ?", (attempt,)
    ).fetchone()
    if row is None or row[0] != AttemptState.INTENT:
        return None
    items = requests_of(db, attempt)
    spec = read_spec(db, items[0].spec) if items else None
    return _Intent(attempt, row[1], spec, items, stored_price(db, row[2]))


def stored_price(db: sqlite3.Connection, price: int | None) -> Price | None:
    """Return a price row that an attempt was made under; None where all was free."""
    if price is None:
        return None
    row = db.execute(
        "SELECT model, tier, input, cached, output, valid_from, source FROM price WHERE id = ?",
        (price,),
    ).fetchone()
    return Price(*row)


def _adopted(store: Store, intent: _Intent, now: int) -> Settlement:
    changes = []
    assert intent.spec is not None  # only embeddings are adopted
    for item in intent.items:
        vector = store.vectors.get(item.key)
        assert vector is not None  # `known` just said so
        changes.append(
            RequestChange(
                request=item.id,
                key=item.key,
                state=State.DONE,
                code="accepted",
                validator=intent.spec.validator,
                value=canonical_json({"dim": len(vector)}),
            )
        )
    return Settlement(
        attempt=intent.attempt,
        state=AttemptState.ADOPTED,
        outcome="adopted",
        t_end=now,
        cost_pusd=intent.reserved,
        usage_src="bound",
        changes=changes,
    )
