"""From a reply to what is written: pure, so that it can be run again over the journal.

A 200 body is always kept and charged, whatever validation thinks of it; a validator that raises
costs a verdict, never a reply.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from augment import validate
from augment.classify import Outcome
from augment.money import FREE, Usage, bound_cost, bound_input, bound_output, cost
from augment.prompts import without_surrogates
from augment.specs import canonical_json, request_key
from augment.store import AttemptState, ChildRow, RequestChange, Settlement, State, pack, pack_body

if TYPE_CHECKING:
    from collections.abc import Sequence

    from augment.classify import Classified
    from augment.money import Price
    from augment.specs import Child, TaskSpec, Verdict
    from augment.store.claims import Claimed
    from augment.wire import Reply

CRASHED = "crashed"
"""Code of a call that was lost with the process."""
_DEEPEST = {"missing_id": 3}
"""Follow-ups in a row by verdict; others get one: a repair ask, or one with twice the room."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How often to ask again.

    Attributes:
        max_tries: sends of a key that count, over all process lives; those lost with the process
            count too, and then the key is held for a person.
        max_rejects: further asks of the same body after a reply that failed validation.
        max_unknowns: further sends of a key whose outcome nobody knows.
        ambiguous: "retry" sends such a key again, "hold" leaves it to a person.
    """

    max_tries: int = 5
    max_rejects: int = 2
    max_unknowns: int = 1
    ambiguous: Literal["retry", "hold"] = "retry"


def judge_reply(
    spec: TaskSpec,
    items: Sequence[Claimed],
    raw: bytes,
    *,
    attempt: int,
    price: Price | None,
    reserved: int,
    policy: Policy,
    now: int,
    reply: Reply | None = None,
) -> Settlement:
    """Settle a call that was answered with a 200.

    Args:
        spec: the task.
        items: the requests of the call, in the order sent.
        raw: the exact body.
        attempt: id of the send.
        price: what tokens cost; None where all is free.
        reserved: what was set aside, pico-USD.
        policy: how often to ask again.
        now: wall clock, milliseconds.
        reply: headers and timing; None where the body comes from the spool or a batch file.
    """
    verdicts = _verdicts(spec, items, raw)
    changes = [
        change_of(spec, item, verdict, policy)
        for item, verdict in zip(items, verdicts, strict=True)
    ]
    paid = judge_paid(
        raw, attempt=attempt, price=price, reserved=reserved, now=now, reply=reply, changes=changes
    )
    vectors_only = spec.kind == "embed" and all(verdict.accepted for verdict in verdicts)
    return dataclasses.replace(paid, raw=None) if vectors_only else paid


def judge_paid(
    raw: bytes,
    *,
    attempt: int,
    price: Price | None,
    reserved: int,
    now: int,
    reply: Reply | None = None,
    changes: Sequence[RequestChange] = (),
) -> Settlement:
    """Settle the money of a 200; no request stands behind one that asked what a server can do.

    Args:
        raw: the exact body.
        attempt: id of the send.
        price: what tokens cost; None where all is free.
        reserved: what was set aside, pico-USD.
        now: wall clock, milliseconds.
        reply: headers and timing; None where the body comes from the spool or a batch file.
        changes: what it does to requests.
    """
    usage = Usage.from_body(raw)
    charged = reserved if usage is None else cost(price or FREE, usage)
    head = _head(raw)
    anomalies = []
    if charged > reserved:
        anomalies.append(
            ("usage_over_bound", f"attempt {attempt}: charged {charged}, reserved {reserved} pUSD")
        )
    return Settlement(
        attempt=attempt,
        state=AttemptState.OK,
        outcome=Outcome.ok,
        t_end=now,
        cost_pusd=charged,
        raw=raw,
        usage=usage,
        usage_src="bound" if usage is None else "server",
        http=200,
        elapsed_ms=None if reply is None else reply.elapsed_ms,
        finish=head["finish"],
        server_request_id=None if reply is None else reply.headers.get("x-request-id"),
        model_returned=head["model"],
        fingerprint=head["fingerprint"],
        anomalies=anomalies,
        changes=changes,
    )


def _verdicts(spec: TaskSpec, items: Sequence[Claimed], raw: bytes) -> list[Verdict]:
    try:
        if spec.kind == "embed":
            return validate.embedding_verdicts(spec, raw, len(items))
        return [validate.validate(spec, raw, item.body, item.context) for item in items]
    except Exception as error:  # a fault of ours must not cost a paid reply
        return [validate.internal_error(error) for _ in items]


def change_of(spec: TaskSpec, item: Claimed, verdict: Verdict, policy: Policy) -> RequestChange:
    """Return what a verdict does to a request."""
    vector = verdict.value if spec.kind == "embed" and verdict.accepted else None
    value = {"dim": len(vector)} if vector is not None else verdict.value
    child, state = None, State.QUARANTINED
    if verdict.accepted:
        state = State.DONE
    elif verdict.final or verdict.code == "internal_error":
        pass
    elif verdict.child is not None:
        if item.depth < _DEEPEST.get(verdict.code, 1):
            child, state = child_row(spec, item, verdict.child), State.FOLLOWED
    elif item.rejects < policy.max_rejects:
        state = State.PLANNED
    return RequestChange(
        request=item.id,
        key=item.key,
        state=state,
        rejects=0 if verdict.accepted else 1,
        code=verdict.code,
        detail=verdict.detail[:500],
        validator=spec.validator,
        value=None if value is None else canonical_json(value),
        vector=vector,
        child=child,
    )


def child_row(spec: TaskSpec, item: Claimed, child: Child) -> ChildRow:
    """Render a follow-up with a key and bounds of its own."""
    return ChildRow(
        key=request_key(spec.provider, spec.endpoint, child.body, item.draw),
        body=pack_body(child.body),
        context=item.packed_context if child.context is None else pack(child.context),
        bound_in=bound_input(child.body),
        bound_out=bound_output(child.body) or 0,
    )


def judge_failure(
    items: Sequence[Claimed],
    classified: Classified,
    *,
    attempt: int,
    policy: Policy,
    now: int,
    embeddings: bool = False,
    reply: Reply | None = None,
) -> Settlement:
    """Settle a call that brought no 200 body.

    A refused call of several texts only goes back: the engine halves it to find the culprit.
    """
    unknown = classified.billed == "unknown"
    halving = embeddings and classified.outcome == Outcome.refused_input and len(items) > 1
    return Settlement(
        attempt=attempt,
        state=AttemptState.UNKNOWN if unknown else AttemptState.UNBILLED,
        outcome=classified.outcome,
        t_end=now,
        http=None if reply is None else reply.status,
        elapsed_ms=None if reply is None else reply.elapsed_ms,
        detail=classified.message[:500],
        server_request_id=None if reply is None else reply.headers.get("x-request-id"),
        changes=[_failed(item, classified, policy, halving=halving) for item in items],
    )


def _failed(
    item: Claimed, classified: Classified, policy: Policy, *, halving: bool
) -> RequestChange:
    outcome, state, tries, unknowns = classified.outcome, State.PLANNED, 0, 0
    if halving or outcome in (
        Outcome.not_sent,
        Outcome.rate_limited,
        Outcome.quota,
        Outcome.auth,
    ):
        tries = -1
    elif outcome in (Outcome.refused, Outcome.refused_input):
        state = State.QUARANTINED
    elif classified.billed == "unknown":
        # A process that was killed says nothing against the request it lost.
        crashed = classified.code == CRASHED
        unknowns = 0 if crashed else 1
        enough = item.tries >= policy.max_tries if crashed else item.unknowns >= policy.max_unknowns
        if policy.ambiguous == "hold" or enough:
            state = State.UNKNOWN
    elif item.tries + 1 >= policy.max_tries:
        state = State.QUARANTINED
    return RequestChange(
        request=item.id,
        key=item.key,
        state=state,
        tries=tries,
        unknowns=unknowns,
        code=classified.code or str(outcome),
        detail=classified.message[:500],
        last=classified.code == CRASHED,
    )


def call_bound(price: Price | None, items: Sequence[Claimed]) -> int:
    """Return the most that a call can cost, pico-USD; 0 where all is free."""
    if price is None:
        return 0
    return bound_cost(price, sum(i.bound_in for i in items), sum(i.bound_out for i in items))


def _head(raw: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {"model": None, "finish": None, "fingerprint": None}
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return found
    if not isinstance(body, dict):
        return found
    choices = body.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        found["finish"] = choices[0].get("finish_reason")
    found["model"], found["fingerprint"] = body.get("model"), body.get("system_fingerprint")
    return {k: without_surrogates(v) if isinstance(v, str) else None for k, v in found.items()}
