"""The whole engine through minutes and hours of trouble, on a clock that tests move."""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest

from augment.budget import read_ledger, recompute
from augment.engine import Engine
from augment.errors import RateLimitStop
from augment.judge import Policy
from augment.limits import Limits
from augment.money import load_prices
from augment.store import State, Store, price_id
from augment.wire import Reply
from tests.augment.drive import plain_spec, plan_all
from tests.augment.fake_clock import FakeClock
from tests.augment.fault_replies import NAMED, Step, limited, reply_body

START = 1000.0  # of the clock


class Timed:
    """Answers after a while, as told by a function of (seconds since the start, number)."""

    def __init__(self, clock, script):
        self.clock, self.script, self.sent = clock, script, []

    async def send(self, call, journal):
        number, now = len(self.sent), self.clock.monotonic() - START
        self.sent.append(now)
        step = self.script(now, number)
        await self.clock.sleep(step.latency)
        body, _ = reply_body(step, "/chat/completions", call.body, number)
        if step.status == 200:
            journal(body)
        return Reply(step.status, dict(step.headers), body)

    async def close(self):
        pass


class Ran:
    """A run of n requests from beginning to end, and what it left."""

    def __init__(self, folder, script, *, n=200, c=8, look=False, watch=None, clock=None, **limits):
        self.clock = clock or FakeClock(grace_s=0.01)
        self.answerer, self.spec = Timed(self.clock, script), plain_spec()
        self.most_places, self.stop, self.places = c, None, []
        with Store(folder, create=True, spool_size=2**20) as self.store:
            self.spec_id = plan_all(self.store, self.spec, n)
            try:
                self.clock.run(self._work(look, watch, limits))
            except RateLimitStop as stop:
                self.stop = stop
            self.states = dict(self._rows("SELECT state, count(*) FROM request GROUP BY 1"))
            self.tries = [tries for (tries,) in self._rows("SELECT tries FROM request")]
            self.ledger = self.store.do(read_ledger)
            assert self.ledger == self.store.do(recompute)

    def _rows(self, query):
        return self.store.do(lambda db: db.execute(query).fetchall())

    async def _work(self, look, watch, given):
        price = load_prices(None).find(self.spec.model, "sync")
        values = {"rpm": None, "tpm": None, "max_wait_s": 6 * 3600.0, "start": self.most_places}
        self.limits = Limits(
            self.clock, concurrency=self.most_places, rng=random.Random(1), **{**values, **given}
        )
        engine = Engine(
            self.store,
            self.spec_id,
            self.spec,
            self.answerer,
            self.limits,
            run=self.store.do(lambda db: db.execute("INSERT INTO run(t0) VALUES (0)").lastrowid),
            clock=self.clock,
            concurrency=self.most_places,
            price=price,
            price_row=self.store.do(lambda db: price_id(db, price)),
            policy=Policy(),
            seed=1,
        )
        watching = [asyncio.ensure_future(self._look())] if look else []
        if watch is not None:
            watching.append(asyncio.ensure_future(watch(self.clock)))
        try:
            await engine.run()
        finally:
            for task in watching:
                task.cancel()

    async def _look(self):
        while True:
            self.places.append(self.limits.aimd.limit)
            await self.clock.sleep(0.5)

    @property
    def sent(self):
        return self.answerer.sent

    @property
    def cuts(self):
        """How often the number of places fell."""
        return sum(later < before for before, later in itertools.pairwise(self.places))


def test_half_a_minute_of_refusals_costs_one_cut_an_episode_and_no_try(tmp_path):
    def script(now, _):
        return limited() if 2 <= now < 32 else Step(latency=0.5)

    ran = Ran(tmp_path / "s", script, n=400, look=True)
    assert ran.states == {State.DONE: 400}
    assert ran.tries == [1] * 400
    assert 1 <= ran.cuts <= 3, "30 s hold at most three cool-downs of 15 s"
    assert ran.limits.aimd.limit == 8, "it recovers"
    refused = [t for t in ran.sent if 2 <= t < 32]
    waits = [b - a for a, b in itertools.pairwise(refused) if b - a > 1]
    assert all(later >= before * 1.5 for before, later in itertools.pairwise(waits)), waits
    assert waits[0] >= 2
    assert ran.ledger.reserved_pusd == 0


def test_refusals_without_end_stop_the_run_with_a_clean_store(tmp_path):
    ran = Ran(tmp_path / "s", lambda *_: limited(), n=50, max_wait_s=600.0)
    assert ran.stop.exit_code == 6
    assert ran.states == {State.PLANNED: 50}, "nothing is quarantined"
    assert ran.tries == [0] * 50
    assert (ran.ledger.spent_pusd, ran.ledger.reserved_pusd) == (0, 0)
    assert 300 < ran.clock.monotonic() - START <= 600


def test_a_burst_of_500s_is_sat_out_with_few_probes_and_quarantines_nothing(tmp_path):
    def script(now, _):
        return NAMED["error_500"] if 2 <= now < 22 else Step(latency=0.5)

    ran = Ran(tmp_path / "s", script)
    assert ran.states == {State.DONE: 200}
    burst = [t for t in ran.sent if 2 <= t < 22]
    assert len(burst) <= 21 + 8, "the breaker opens at more than half of forty"
    opened = burst[-1]
    probes = [t for t in ran.sent if opened < t < opened + 33]
    assert probes
    assert not [t for t in ran.sent if opened < t < opened + 29], "nothing while it is open"
    assert max(ran.tries) <= 5
    assert ran.ledger.reserved_pusd == 0


def test_a_longer_burst_gets_at_most_three_probes(tmp_path):
    def script(now, _):
        return NAMED["error_500"] if 2 <= now < 150 else Step(latency=0.5)

    ran = Ran(tmp_path / "s", script)
    assert ran.states == {State.DONE: 200}
    first = [t for t in ran.sent if 2 <= t < 22]
    assert len([t for t in ran.sent if first[-1] < t < 150]) <= 3


NOON, LATER = (f"Wed, 25 Nov 2026 12:0{time} GMT" for time in ("0:00", "0:40"))


@pytest.mark.parametrize("days", [1, -1])
@pytest.mark.parametrize(
    ("pause", "seconds"),
    [
        ({"retry_after": 30}, 30),
        ({"retry_after_ms": 20_000}, 20),
        ({"retry_after": 300}, 300),
        ({"date": NOON, "retry_after": LATER}, 40),
    ],
)
def test_a_jump_of_the_wall_clock_changes_no_pause(tmp_path, days, pause, seconds):
    def script(_, number):
        return limited(**pause) if number == 19 else Step(latency=0.1)

    async def watch(clock):
        await clock.sleep(10)
        clock.jump_wall(days * 86_400_000)

    ran = Ran(tmp_path / "s", script, n=60, watch=watch)
    refused = ran.sent[19]
    later = [t for t in ran.sent if t > refused + 1]
    assert refused + seconds <= later[0] <= refused + 1.2 * seconds + 0.1
    assert ran.states == {State.DONE: 60}
    assert ran.tries == [1] * 60


def test_after_an_hour_asleep_the_run_goes_on_at_its_rate(tmp_path):
    clock = FakeClock(grace_s=0.01)

    def script(_, number):
        if number == 30:
            clock._now += 3600  # the machine sleeps with calls in flight
            clock.jump_wall(3_600_000)
        return Step(latency=0.2)

    ran = Ran(tmp_path / "s", script, n=90, clock=clock, rpm=600)
    assert ran.states == {State.DONE: 90}
    awake = [t for t in ran.sent if t > 3600]
    assert len(awake) >= 50
    for begin in awake:
        together = sum(begin <= t < begin + 1 for t in awake)
        assert together <= 10 + 5, "ten a second and half a second's worth at once"
