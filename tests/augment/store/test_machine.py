"""Any order of planning, sending, losing, crashing and deciding agrees with a plain model."""

from __future__ import annotations

import shutil
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from augment.budget import read_ledger, recompute, set_cap
from augment.classify import Classified, Outcome
from augment.errors import BudgetStop
from augment.judge import Policy, call_bound, judge_failure, judge_reply
from augment.money import load_prices
from augment.recover import recover
from augment.store import AttemptState, State, Store, add_spec, plan, price_id, reserve
from augment.store.claims import requests_of
from augment.store.reopen import reopen
from augment.store.unknown import list_unknown, release, retry
from tests.augment.drive import plain_row, plain_spec
from tests.augment.fault_replies import Step, reply_body

POLICY = Policy(max_tries=3, max_rejects=1, max_unknowns=1)
PRICE = load_prices(None).find("gpt-4o-mini", "sync")
SPEC = plain_spec()
FAILURES = {
    "lost": Classified(Outcome.ambiguous, "unknown", None, "reset", ""),
    "not_sent": Classified(Outcome.not_sent, "no", None, "connect", ""),
    "refused": Classified(Outcome.refused_input, "no", None, "bad_request", ""),
}
pick = st.integers(0, 10**6)


def place():
    """Memory where there is some: every step waits for the disk otherwise."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))


class Machine(RuleBasedStateMachine):
    """The store and the model, step by step.

    `requests` is id -> (state, tries, rejects, unknowns), `attempts` is id -> what was sent and
    how it ended, `results` is id -> the attempt that answered.
    """

    def __init__(self):
        super().__init__()
        self.root, self.lives = place(), 0
        self.requests, self.attempts, self.results, self.spooled = {}, {}, {}, {}
        self.cap, self.spent, self.reserved = None, 0, 0
        self._open(self.root / "0")

    @initialize(calls=st.none() | st.integers(1, 4))
    def begin(self, calls):
        self.spec, _ = self.store.do(lambda db: add_spec(db, SPEC, 0))
        self.run = self.store.do(lambda db: db.execute("INSERT INTO run(t0) VALUES (0)").lastrowid)
        self.price = self.store.do(lambda db: price_id(db, PRICE))
        self._plan(4)
        self.change_the_cap(calls)

    def _open(self, folder):
        self.folder = folder
        self.store = Store(folder, create=True, spool_size=65536)

    def teardown(self):
        self.store.close()
        shutil.rmtree(self.root)

    def _rows(self, query):
        return self.store.do(lambda db: db.execute(query).fetchall())

    # What may be chosen --------------------------------------------------------------------

    def _attempts(self, *states):
        return [i for i, a in self.attempts.items() if a.state in states]

    def _planned(self):
        return [i for i, r in self.requests.items() if r.state == State.PLANNED]

    # Planning and money --------------------------------------------------------------------

    @rule(n=st.integers(1, 9))
    def plan(self, n):
        self._plan(n)

    def _plan(self, n):
        rows = [plain_row(SPEC, i) for i in range(n)]
        new = self.store.do(partial(plan, spec=self.spec, rows=rows))
        assert new == max(0, n - len(self.requests)), "equal requests are planned once"
        for number in range(len(self.requests), n):
            state = SimpleNamespace(state=State.PLANNED, tries=0, rejects=0, unknowns=0)
            self.requests[number + 1] = state

    @rule(calls=st.none() | st.integers(0, 6))
    def change_the_cap(self, calls):
        """Also to less than is spent already."""
        self.cap = None if calls is None else calls * 96_600_000
        self.store.do(lambda db: set_cap(db, self.cap))

    # Sending -------------------------------------------------------------------------------

    @rule(choices=st.lists(pick, min_size=1, max_size=4))
    def reserve(self, choices):
        for choice in choices:
            self._reserve(sorted(self.requests)[choice % len(self.requests)])

    def _reserve(self, request):
        row = plain_row(SPEC, request - 1)
        bound = call_bound(PRICE, [row])
        send = partial(
            reserve, run=self.run, lane="sync", requests=[request], bound_pusd=bound,
            price=self.price, now=0,
        )  # fmt: skip
        if self.cap is not None and self.spent + self.reserved + bound > self.cap:
            with pytest.raises(BudgetStop):
                self.store.do(send)
        elif self.requests[request].state != State.PLANNED:
            with pytest.raises(ValueError, match="not planned"):
                self.store.do(send)
        else:
            attempt = self.store.do(send)
            assert attempt not in self.attempts
            self.attempts[attempt] = SimpleNamespace(
                state=AttemptState.INTENT, request=request, bound=bound
            )
            self.requests[request].state = State.IN_FLIGHT
            self.requests[request].tries += 1
            self.reserved += bound
            ledger = self.store.do(read_ledger)
            assert self.cap is None or ledger.spent_pusd + ledger.reserved_pusd <= self.cap

    @precondition(lambda self: set(self._attempts(AttemptState.INTENT)) - set(self.spooled))
    @rule(choice=pick, good=st.booleans())
    def a_body_arrives(self, choice, good):
        waiting = sorted(set(self._attempts(AttemptState.INTENT)) - set(self.spooled))
        attempt = waiting[choice % len(waiting)]
        self.spooled[attempt] = good
        self.store.spool.write(attempt, self._body(attempt, good)[0])

    @precondition(lambda self: self._attempts(AttemptState.INTENT))
    @rule(choice=pick, good=st.booleans())
    def a_reply_is_settled(self, choice, good):
        attempts = self._attempts(AttemptState.INTENT)
        self._settle(attempts[choice % len(attempts)], good)

    @precondition(lambda self: self._attempts(AttemptState.UNKNOWN))
    @rule(choice=pick, good=st.booleans())
    def a_reply_comes_after_its_call_was_given_up(self, choice, good):
        attempts = self._attempts(AttemptState.UNKNOWN)
        self._settle(attempts[choice % len(attempts)], good)

    def _settle(self, attempt, good):
        good = self.spooled.pop(attempt, good)
        body, _ = self._body(attempt, good)
        items = self.store.do(lambda db: requests_of(db, attempt))
        end = judge_reply(
            SPEC, items, body, attempt=attempt, price=PRICE,
            reserved=self.attempts[attempt].bound, policy=POLICY, now=1,
        )  # fmt: skip
        assert self.store.settle(end).result()
        self._answered(attempt, good)
        assert not self.store.settle(end).result(), "settled once"

    @precondition(lambda self: set(self._attempts(AttemptState.INTENT)) - set(self.spooled))
    @rule(choice=pick, kind=st.sampled_from(sorted(FAILURES)))
    def settle_a_failure(self, choice, kind):
        waiting = sorted(set(self._attempts(AttemptState.INTENT)) - set(self.spooled))
        attempt = waiting[choice % len(waiting)]
        items = self.store.do(lambda db: requests_of(db, attempt))
        end = judge_failure(items, FAILURES[kind], attempt=attempt, policy=POLICY, now=1)
        assert self.store.settle(end).result()
        self._failed(attempt, kind)

    # What a person decides -----------------------------------------------------------------

    @precondition(lambda self: self._attempts(AttemptState.UNKNOWN))
    @rule(choice=pick, everything=st.booleans())
    def release(self, choice, everything):
        lost = self._attempts(AttemptState.UNKNOWN)
        chosen = lost if everything else [lost[choice % len(lost)]]
        freed = sum(self.attempts[i].bound for i in chosen)
        given = None if everything else chosen
        assert self.store.do(lambda db: release(db, given)) == (len(chosen), freed)
        self.reserved -= freed
        for attempt in chosen:
            self.attempts[attempt].state = AttemptState.RELEASED
            request = self.requests[self.attempts[attempt].request]
            request.unknowns = max(0, request.unknowns - 1)
            self._unhold(attempt)

    @precondition(lambda self: self._attempts(AttemptState.UNKNOWN))
    @rule()
    def retry(self):
        lost = self._attempts(AttemptState.UNKNOWN)
        held = sum(self._unhold(attempt) for attempt in lost)
        assert self.store.do(retry) == held

    @precondition(lambda self: any(r.state == State.QUARANTINED for r in self.requests.values()))
    @rule()
    def open_quarantine(self):
        self.store.do(reopen)
        for request in self.requests.values():
            if request.state == State.QUARANTINED:
                request.state, request.tries, request.rejects = State.PLANNED, 0, 0

    # Lives ---------------------------------------------------------------------------------

    @rule(crash=st.booleans())
    def another_life(self, crash):
        """After a crash the next process finds what the kernel holds at this moment."""
        if crash:
            self.lives += 1
            after = self.root / str(self.lives)
            shutil.copytree(self.folder, after)
        self.store.close()
        self._open(after if crash else self.folder)
        self._recovered()

    def _recovered(self):
        lost = set(self._attempts(AttemptState.INTENT)) - set(self.spooled)
        found = recover(self.store, POLICY, 2)
        assert (found.from_spool, found.adopted, found.unknown) == (len(self.spooled), 0, len(lost))
        for attempt, good in self.spooled.items():
            self._answered(attempt, good)
        for attempt in sorted(lost):
            self._failed(attempt, "crashed")
        self.spooled = {}

    # The model -----------------------------------------------------------------------------

    def _body(self, attempt, good):
        number = self.attempts[attempt].request - 1
        step = Step() if good else Step(content="the first one")
        asked = {"messages": [{"content": f"ask {number}"}], "response_format": _FORM}
        return reply_body(step, "/chat/completions", asked, attempt)

    def _answered(self, attempt, good):
        sent = self.attempts[attempt]
        late, request = sent.state == AttemptState.UNKNOWN, self.requests[sent.request]
        usage = self._body(attempt, good)[1]
        self.reserved -= sent.bound
        self.spent += usage["prompt_tokens"] * 150_000 + usage["completion_tokens"] * 600_000
        sent.state = AttemptState.OK
        if request.state == State.DONE or (late and not good):
            return
        if good:
            request.state = State.DONE
            self.results[sent.request] = attempt
        else:
            again = request.rejects < POLICY.max_rejects
            request.state = State.PLANNED if again else State.QUARANTINED
            request.rejects += 1

    def _failed(self, attempt, kind):
        sent = self.attempts[attempt]
        request = self.requests[sent.request]
        if kind in ("lost", "crashed"):
            sent.state = AttemptState.UNKNOWN
        else:
            sent.state = AttemptState.UNBILLED
            self.reserved -= sent.bound
        if request.state == State.DONE:
            return
        if kind == "refused":
            request.state = State.QUARANTINED
        elif (kind == "lost" and request.unknowns >= POLICY.max_unknowns) or (
            kind == "crashed" and request.tries >= POLICY.max_tries
        ):
            request.state = State.UNKNOWN
        else:
            request.state = State.PLANNED
        request.unknowns += kind == "lost"
        request.tries -= kind == "not_sent"

    def _unhold(self, attempt):
        request = self.requests[self.attempts[attempt].request]
        if request.state != State.UNKNOWN:
            return 0
        request.state = State.PLANNED
        return 1

    # What always holds ---------------------------------------------------------------------

    @invariant()
    def the_ledger_is_the_sum_of_the_attempts(self):
        ledger = self.store.do(read_ledger)
        assert ledger == self.store.do(recompute)
        assert (ledger.cap_pusd, ledger.spent_pusd, ledger.reserved_pusd) == (
            self.cap, self.spent, self.reserved,
        )  # fmt: skip

    @invariant()
    def requests_and_results_are_the_model_s(self):
        rows = self._rows("SELECT id, state, tries, rejects, unknowns FROM request")
        assert {i: tuple(row) for i, *row in rows} == {
            i: (r.state, r.tries, r.rejects, r.unknowns) for i, r in self.requests.items()
        }
        assert dict(self._rows("SELECT request, attempt FROM result")) == self.results, (
            "what was accepted first stays"
        )
        done = {i for i, r in self.requests.items() if r.state == State.DONE}
        assert done == set(self.results)

    @invariant()
    def nothing_is_in_flight_twice(self):
        flying = [self.attempts[i].request for i in self._attempts(AttemptState.INTENT)]
        assert len(flying) == len(set(flying))
        rows = self._rows("SELECT id, state FROM attempt")
        assert dict(rows) == {i: a.state for i, a in self.attempts.items()}
        known = [call.attempt for call in self.store.do(list_unknown)]
        assert known == self._attempts(AttemptState.UNKNOWN)


_FORM = {
    "type": "json_schema",
    "json_schema": {
        "schema": {
            "type": "object",
            "properties": {
                "most_liked": {"type": "integer", "enum": [1, 2]},
                "least_liked": {"type": "integer", "enum": [1, 2]},
            },
        }
    },
}

TestMachine = pytest.mark.slow(Machine.TestCase)
TestMachine.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
