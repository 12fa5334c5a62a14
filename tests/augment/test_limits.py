"""Waits before a call, in virtual time."""

import asyncio
import itertools
import random

import pytest
from fake_clock import FakeClock
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from augment.classify import Classified, Outcome
from augment.errors import RateLimitStop
from augment.limits import Limits
from augment.throttles import Aimd, Breaker, DualBucket, Gate


def outcome(name, retry_after=None):
    return Classified(Outcome(name), "no", retry_after, name, "")


OK = outcome("ok")


def limits_of(clock, **other):
    values = {"rpm": None, "tpm": None, "concurrency": 8, "max_wait_s": 3600.0}
    return Limits(clock, **{**values, "rng": random.Random(0), **other})


async def call(limits, clock, server, tokens=10, used=None, headers=None):
    """One call as the engine makes it; `server(now)` gives the outcome and the latency."""
    await limits.enter(tokens)
    classified = None
    try:
        await limits.ready()
        await limits.probe()
        classified, latency = server(clock.monotonic())
        await clock.sleep(latency)
    finally:
        limits.leave(classified, estimated=tokens, used=used, headers=headers or {})
    return classified


async def workers(limits, clock, server, n, jobs, **other):
    """Run jobs with n workers; a job is over when it is ok."""
    left = itertools.count()

    async def work():
        while next(left) < jobs:
            while (await call(limits, clock, server, **other)).outcome != Outcome.ok:
                pass

    await asyncio.gather(*(work() for _ in range(n)))


# Rates -------------------------------------------------------------------------------------


def assert_within(sent, per_minute, burst):
    """No stretch of time holds more than the burst and what flowed in; the last may be in debt.

    This is what a token bucket is, over all windows instead of by a running level.
    """
    rate = per_minute / 60
    for i, (begin, _) in enumerate(sent):
        before = 0.0
        for at, amount in sent[i:]:
            assert before + min(amount, burst) <= burst + rate * (at - begin) + 1e-3
            before += amount


@settings(max_examples=25)
@given(
    rpm=st.sampled_from([None, 20, 90, 600, 3500]),
    tpm=st.sampled_from([None, 5_000, 90_000, 2_000_000]),
    sizes=st.lists(st.integers(1, 9_000), min_size=1, max_size=10),
)
def test_a_bucket_never_exceeds_the_same_bucket_of_a_server(rpm, tpm, sizes):
    clock, sent = FakeClock(), []

    async def main():
        bucket = DualBucket(clock, rpm, tpm)

        async def send(tokens):
            await bucket.acquire(tokens)
            sent.append((clock.monotonic(), tokens))

        await asyncio.gather(*(send(sizes[i % len(sizes)]) for i in range(60)))

    clock.run(main())
    assert [tokens for _, tokens in sent] == [sizes[i % len(sizes)] for i in range(60)]
    if rpm is not None:
        assert_within([(at, 1.0) for at, _ in sent], rpm, rpm / 60)
    if tpm is not None:
        assert_within(sent, tpm, tpm / 60)


@pytest.mark.parametrize(
    ("rpm", "tpm", "tokens"),
    [(500, None, 1), (6_000, 200_000, 300), (None, 90_000, 700), (10_000, 90_000, 4_000)],
)
@pytest.mark.parametrize("burst_s", [0.5, 1.0])
def test_a_bucket_reaches_its_rate(rpm, tpm, tokens, burst_s):
    clock = FakeClock()
    possible = min((rpm or 1e9) / 60, (tpm or 1e9) / 60 / tokens)

    async def main():
        bucket, sent = DualBucket(clock, rpm, tpm, burst_s), 0
        begin = clock.monotonic()
        while clock.monotonic() - begin <= 60:
            await bucket.acquire(tokens)
            sent += 1
        return sent

    assert clock.run(main()) >= 0.97 * possible * 60


def test_a_refund_wakes_whoever_waits_for_it():
    clock = FakeClock()

    async def main():
        bucket = DualBucket(clock, None, 60)  # one token a second
        await bucket.acquire(101)  # leaves a debt of 100
        waiting = asyncio.ensure_future(bucket.acquire(1))
        await clock.advance(10)
        assert not waiting.done()
        bucket.refund(95)
        await clock.advance(0.001)
        assert waiting.done()
        bucket.refund(-50)
        begin = clock.monotonic()
        await bucket.acquire(1)
        return clock.monotonic() - begin

    assert 45 < clock.run(main()) < 52


def test_new_rates_hold_for_those_who_wait_and_none_is_no_limit():
    clock = FakeClock()

    async def main():
        bucket = DualBucket(clock, 1, None)
        await bucket.acquire(10**9)
        waiting = asyncio.ensure_future(bucket.acquire(1))
        await clock.advance(5)
        bucket.set_rates(600, None)
        await clock.advance(0.2)
        assert waiting.done()
        bucket.set_rates(None, None)
        begin = clock.monotonic()
        for _ in range(1000):
            await bucket.acquire(10**6)
        return clock.monotonic() - begin

    assert clock.run(main()) == 0


def test_the_limits_keep_the_rate_of_a_server_although_calls_bunch_up_on_the_way():
    """First calls open connections, later ones overtake them; a second's worth is allowed."""
    clock, rng, sent = FakeClock(), random.Random(1), []

    async def main():
        limits = limits_of(clock, rpm=1200, concurrency=32, start=32)

        async def work():
            for i in range(20):
                await limits.enter(10)
                await clock.sleep(rng.uniform(0, 0.05) if i else 0.3)
                sent.append((clock.monotonic(), 1.0))
                await clock.sleep(0.3)
                limits.leave(OK, estimated=10, used=10, headers={})

        await asyncio.gather(*(work() for _ in range(32)))

    clock.run(main())
    assert len(sent) == 640
    assert_within(sorted(sent), 1200, 20.0)
    assert sent[-1][0] - sent[0][0] <= 640 / 20 / 0.97 + 0.5


@pytest.mark.parametrize(
    ("end", "used", "waits"),
    [
        (None, None, 0),  # withdrawn before it was sent
        ("not_sent", None, 0),
        ("ok", 500, 0),
        ("ok", 10_000, 9.5),
        ("ok", 20_000, 19.5),
        ("ok", None, 9.5),
        ("ambiguous", None, 9.5),
    ],
)
def test_what_was_not_used_comes_back(end, used, waits):
    clock = FakeClock()

    async def main():
        limits = limits_of(clock, rpm=60_000, tpm=60_000)  # 1000 tokens a second, 500 at once
        await limits.enter(10_000)
        classified = None if end is None else outcome(end)
        limits.leave(classified, estimated=10_000, used=used, headers={})
        begin = clock.monotonic()
        await limits.enter(0)
        return clock.monotonic() - begin

    assert clock.run(main()) == pytest.approx(waits, abs=1e-3)


def test_a_call_held_up_by_a_pause_or_cancelled_takes_its_tokens_once_or_never():
    clock = FakeClock()

    async def main():
        limits = limits_of(clock, tpm=60_000)
        await limits.enter(5_500)
        held = asyncio.ensure_future(limits.enter(200_000))  # due in 5.5 s
        await clock.advance(1)
        limits.gate.close_for(100)
        await clock.advance(125)
        assert held.done()
        begin = clock.monotonic()
        given_up = asyncio.ensure_future(limits.enter(10**6))
        await clock.advance(1)
        given_up.cancel()
        await limits.enter(0)
        return clock.monotonic() - begin

    # passed when the gate opened, between 101 and 121 s, with a debt of 199.5 s
    assert 199.5 - 25 <= clock.run(main()) <= 199.5 - 5


def test_rates_are_adopted_from_the_first_reply_that_names_them():
    clock = FakeClock()

    def server(_):
        return OK, 0.01

    async def rate(headers, **given):
        limits = limits_of(clock, **given)
        await call(limits, clock, server, tokens=1, used=1, headers=headers)
        begin = clock.monotonic()
        for _ in range(130):
            await call(limits, clock, server, tokens=1, used=1)
        return (clock.monotonic() - begin) / 130

    named = {"x-ratelimit-limit-requests": "60", "x-ratelimit-limit-tokens": "-1"}
    assert 0.97 <= clock.run(rate(named)) <= 1.01
    assert clock.run(rate({"x-ratelimit-limit-tokens": "60"})) > 0.97
    assert clock.run(rate(named, rpm=600)) < 0.11  # what the user says counts
    for junk in ("0", "-1", "many", "nan", "inf", "1e300", ""):
        garbage = {f"x-ratelimit-limit-{what}": junk for what in ("requests", "tokens")}
        assert clock.run(rate(garbage)) < 0.011


# Pauses ------------------------------------------------------------------------------------


@given(seconds=st.floats(0.001, 5000), draw=st.integers(0, 1000))
def test_the_gate_opens_never_before_and_at_most_a_fifth_after(seconds, draw):
    clock = FakeClock()

    async def main():
        gate = Gate(clock, random.Random(draw))
        begin = clock.monotonic()
        gate.close_for(seconds)
        gate.success()  # of a call sent before: no reason to open
        await asyncio.gather(*(gate.wait() for _ in range(5)))
        return clock.monotonic() - begin

    assert seconds <= clock.run(main()) <= 1.2 * seconds + 1e-5


def test_the_gate_backs_off_without_a_hint_and_forgets_after_a_success():
    clock = FakeClock()

    async def main():
        gate, pauses = Gate(clock, random.Random(0)), []
        for _ in range(7):
            begin = clock.monotonic()
            for _ in range(8):  # eight calls in flight are refused together: one episode
                gate.close_for(None)
            await gate.wait()
            pauses.append(clock.monotonic() - begin)
        since = gate.limited_since
        gate.success()
        assert gate.limited_since is None
        gate.close_for(None)
        return pauses, since, gate.left

    pauses, since, after = clock.run(main())
    for pause, wanted in zip(pauses, [2, 4, 8, 16, 32, 60, 60], strict=True):
        assert wanted <= pause <= 1.2 * wanted + 1e-5
    assert since == 1000.0
    assert 2 <= after <= 2.4


def test_a_later_longer_pause_moves_the_opening_and_a_shorter_one_does_not():
    clock = FakeClock()

    async def main():
        gate = Gate(clock, random.Random(0))
        gate.close_for(10)
        waiting = asyncio.ensure_future(gate.wait())
        await clock.advance(9)
        gate.close_for(20)
        gate.close_for(1)
        await clock.advance(19.9)
        assert not waiting.done()
        await clock.advance(4.2)
        assert waiting.done()

    clock.run(main())


@pytest.mark.parametrize("pause", [0.25, 7.0, 300.0])
def test_no_call_leaves_while_the_server_asked_for_a_pause(pause):
    clock, sent, refused = FakeClock(), [], []

    def server(now):
        sent.append(now)
        if len(sent) == 20:
            refused.append(now + 0.1)  # when the refusal is read
            return outcome("rate_limited", pause), 0.1
        return OK, 0.1

    clock.run(workers(limits_of(clock), clock, server, 8, 100))
    (at,) = refused
    later = [t for t in sent if t > at]
    assert at + pause <= later[0] <= at + 1.2 * pause + 0.1
    assert len(sent) == 101


def test_a_rate_limit_of_half_a_minute_costs_one_cut_and_all_is_done():
    clock, sent = FakeClock(), []

    def server(now):
        sent.append(now)
        return (outcome("rate_limited") if 1005 < now < 1035 else OK), 0.5

    async def main():
        limits = limits_of(clock, concurrency=16, start=16)
        seen = []

        async def watch():
            while True:
                seen.append(limits.aimd.limit)
                await clock.sleep(0.25)

        watching = asyncio.ensure_future(watch())
        await workers(limits, clock, server, 16, 1500)
        watching.cancel()
        return seen, limits.aimd.limit

    seen, last = clock.run(main())
    episodes = sum(b < a for a, b in itertools.pairwise(seen))
    assert 1 <= episodes <= 3  # 30 s hold at most three cool-downs of 15 s
    assert last == 16
    assert sum(1005 < t < 1035 for t in sent) < 16 * 5


@pytest.mark.parametrize("n", [1, 8])
def test_a_sustained_rate_limit_stops_the_run_within_the_time_allowed(n):
    clock = FakeClock()

    async def main():
        limits = limits_of(clock, max_wait_s=600.0)
        with pytest.raises(RateLimitStop, match="max_wait_s"):
            await workers(limits, clock, lambda _: (outcome("rate_limited"), 0.1), n, 20)
        return clock.monotonic() - 1000

    assert 500 < clock.run(main()) <= 0.1 + 600  # from the first refusal on


def test_a_pause_longer_than_the_time_allowed_stops_at_once():
    clock = FakeClock()

    async def main():
        limits = limits_of(clock, max_wait_s=600.0)
        await call(limits, clock, lambda _: (outcome("rate_limited", 7200.0), 0.1))
        with pytest.raises(RateLimitStop):
            await limits.enter(1)
        assert limits.aimd.flying == 0
        return clock.monotonic() - 1000

    assert clock.run(main()) < 1


def test_whoever_waits_already_learns_of_a_pause_that_is_too_long():
    clock = FakeClock()

    async def main():
        limits = limits_of(clock, max_wait_s=600.0)
        first = asyncio.ensure_future(
            call(limits, clock, lambda _: (outcome("rate_limited", 7200.0), 5.0))
        )
        await clock.advance(1)
        await call(limits, clock, lambda _: (outcome("rate_limited", 60.0), 0.1))
        waiting = asyncio.ensure_future(limits.enter(1))
        await clock.advance(1)
        behind = asyncio.ensure_future(limits.enter(1))
        await first
        with pytest.raises(RateLimitStop):
            await waiting
        with pytest.raises(RateLimitStop):
            await behind
        return clock.monotonic() - 1000

    assert clock.run(main()) < 6


def test_one_success_between_starts_the_time_allowed_again():
    clock = FakeClock()

    def server(now):
        good = 1090 < now < 1130
        return (OK if good else outcome("rate_limited", 20.0)), 0.1

    async def main():
        limits = limits_of(clock, max_wait_s=120.0)
        with pytest.raises(RateLimitStop):
            await workers(limits, clock, server, 1, 10_000)
        return clock.monotonic()

    assert 1130 < clock.run(main()) <= 1130 + 120 + 1


# Places ------------------------------------------------------------------------------------


def test_places_double_until_the_first_refusal_and_are_felt_out_after():
    clock = FakeClock()

    async def main():
        aimd, limit = Aimd(clock, 100), []
        for _ in range(4):
            for _ in range(int(aimd.limit)):
                while aimd.flying < int(aimd.limit):
                    await aimd.acquire()
                aimd.success()
            limit.append(aimd.limit)
        aimd.cut(None)
        aimd.cut(None)
        limit.append(aimd.limit)
        await clock.advance(14.9)
        aimd.cut(None)
        limit.append(aimd.limit)
        await clock.advance(0.2)
        aimd.cut(100.0)
        await clock.advance(99)
        aimd.cut(None)
        limit.append(aimd.limit)
        for _ in range(int(aimd.limit)):
            aimd.success()
        limit.append(aimd.limit)
        return limit

    assert clock.run(main()) == [16, 32, 64, 100, 75, 75, 56.25, 56.25 * 1.05]


def test_places_are_given_in_order_never_more_than_the_limit_and_never_less_than_one():
    clock, order = FakeClock(), []

    async def main():
        aimd = Aimd(clock, 2)

        async def work(number):
            await aimd.acquire()
            order.append(number)
            assert aimd.flying <= 2
            await clock.sleep(1)
            aimd.release()

        tasks = [asyncio.ensure_future(work(i)) for i in range(20)]
        await clock.advance(3.5)
        tasks[12].cancel()
        await asyncio.wait(tasks)
        assert aimd.flying == 0
        for _ in range(30):
            aimd.cut(None)
            await clock.advance(16)
        return aimd.limit

    assert clock.run(main()) == 1
    assert order == [i for i in range(20) if i != 12]


def test_idle_places_do_not_raise_the_limit():
    clock = FakeClock()

    async def main():
        aimd = Aimd(clock, 64)
        await aimd.acquire()
        for _ in range(100):
            aimd.success()
        return aimd.limit

    assert clock.run(main()) == 8


def test_a_rate_bound_run_does_not_raise_the_number_of_places():
    clock = FakeClock()

    async def main():
        limits = limits_of(clock, rpm=120, concurrency=64)
        await workers(limits, clock, lambda _: (OK, 0.5), 64, 200)
        return limits.aimd.limit

    assert clock.run(main()) == 8


# Breaker -----------------------------------------------------------------------------------


def test_the_breaker_opens_at_more_than_half_of_forty_or_twenty_unsent():
    clock = FakeClock()
    mixed, unsent = Breaker(clock), Breaker(clock)
    for i in range(40):
        mixed.record(None, good=i % 2 == 0)
    assert mixed.open_until is None
    mixed.record(None, good=False)
    assert mixed.open_until == 1030

    for _ in range(19):
        unsent.record(None, good=False, unsent=True)
    unsent.record(None, good=True)
    for _ in range(19):
        unsent.record(None, good=False, unsent=True)
    assert unsent.open_until == 1030  # 38 of 39 were bad
    fresh = Breaker(clock)
    for i in range(20):
        assert fresh.open_until is None, i
        fresh.record(None, good=False, unsent=True)
    assert fresh.open_until == 1030


def test_one_probe_at_a_time_twice_as_long_after_each_bad_one():
    clock, probes = FakeClock(), []

    async def main():
        breaker = Breaker(clock)
        for _ in range(21):
            breaker.record(None, good=False)

        async def work(number):
            await breaker.wait(number)
            if breaker.open_until is None:
                return
            probes.append(clock.monotonic() - 1000)
            breaker.record("another", good=True)  # sent long ago: says nothing
            if len(probes) == 2:
                breaker.abandon(number)  # never sent: the next may
                return
            await clock.sleep(1)
            breaker.record(number, good=len(probes) == 8)

        await asyncio.gather(*(work(i) for i in range(30)))
        return breaker.open_until

    assert clock.run(main()) is None
    # 30 s, its probe takes 1 s, 60 s, ..., 600 s at most
    assert probes == pytest.approx([30, 91, 91, 212, 453, 934, 1535, 2136], abs=1e-3)


def test_a_burst_of_server_errors_costs_few_probes_and_all_is_done():
    clock, sent = FakeClock(), []

    def server(now):
        sent.append(now)
        return (outcome("server") if 1002 <= now < 1042 else OK), 0.1

    async def main():
        limits = limits_of(clock)
        await workers(limits, clock, server, 8, 2000)
        return limits.waiting_for()

    assert clock.run(main()) == ""
    bad = [t for t in sent if 1002 <= t < 1042]
    assert len(bad) <= 21 + 8 + 1
    assert len(sent) == 2000 + len(bad)


@pytest.mark.parametrize("n", [1, 8])
def test_a_server_that_stays_down_stops_the_run_in_the_end(n):
    clock = FakeClock()

    async def main():
        limits = limits_of(clock, max_wait_s=3600.0)
        with pytest.raises(RateLimitStop, match="is up"):
            await workers(limits, clock, lambda _: (outcome("not_sent"), 0.1), n, 20)
        return clock.monotonic() - 1000

    assert 3600 < clock.run(main()) < 3600 + 700


def test_a_probe_is_tried_however_short_the_time_allowed():
    clock, sent = FakeClock(), []

    def server(now):
        sent.append(now)
        return (outcome("not_sent") if now < 1005 else OK), 0.1

    clock.run(workers(limits_of(clock, max_wait_s=1.0), clock, server, 8, 50))
    assert len(sent) > 50


def test_a_pause_with_a_503_is_honoured():
    clock, sent = FakeClock(), []

    def server(now):
        sent.append(now)
        return (outcome("server", 40.0) if len(sent) == 1 else OK), 0.1

    clock.run(workers(limits_of(clock), clock, server, 1, 3))
    assert sent[1] - sent[0] >= 40.1


# The door ----------------------------------------------------------------------------------


def test_what_it_waits_for_is_said():
    clock = FakeClock()

    async def main():
        limits = limits_of(clock)
        said = [limits.waiting_for()]
        limits.gate.close_for(10)
        said.append(limits.waiting_for())
        await clock.advance(13)
        for _ in range(21):
            limits.breaker.record(None, good=False)
        said.append(limits.waiting_for())
        await clock.advance(31)
        said.append(limits.waiting_for())
        return said

    assert clock.run(main()) == [
        "",
        "rate limit 12 s",
        "breaker open 30 s",
        "breaker open, one call probes",
    ]


def test_close_lets_everybody_through_at_once():
    clock = FakeClock()

    async def main():
        limits = limits_of(clock, rpm=1, concurrency=2, start=1)
        await limits.enter(1)
        limits.gate.close_for(300)
        ready = asyncio.ensure_future(limits.ready())
        entering = [asyncio.ensure_future(limits.enter(1)) for _ in range(5)]
        for _ in range(21):
            limits.breaker.record(None, good=False)
        probing = asyncio.ensure_future(limits.probe())
        await clock.advance(1)
        assert not any(task.done() for task in [ready, probing, *entering])
        limits.close()
        await asyncio.gather(ready, probing, *entering)
        for _ in range(6):
            limits.leave(None, estimated=1, used=None, headers={})
        assert limits.aimd.flying == 0
        return clock.monotonic()

    assert clock.run(main()) == 1001


def test_a_probe_that_is_withdrawn_leaves_its_place_to_the_next():
    clock = FakeClock()

    async def main():
        limits = limits_of(clock)
        for _ in range(21):
            limits.breaker.record(None, good=False)

        async def withdrawn():
            await limits.enter(1)
            await limits.probe()
            limits.leave(None, estimated=1, used=None, headers={})

        await asyncio.gather(*(withdrawn() for _ in range(5)))
        await call(limits, clock, lambda _: (OK, 0.1))
        return limits.waiting_for(), clock.monotonic() - 1000

    said, seconds = clock.run(main())
    assert said == ""
    assert 30 < seconds < 31


class Door(RuleBasedStateMachine):
    """Calls come, are cancelled at any point, and end in any way; nothing is lost by it."""

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = FakeClock()
        self.limits = limits_of(
            self.clock, rpm=600, tpm=60_000, concurrency=4, max_wait_s=1e9, start=4
        )
        self.tasks, self.sent, self.ends = [], 0, {}

    def teardown(self):
        for task in self.tasks:
            task.cancel()
        self.do(self.clock.advance(0))
        assert self.limits.aimd.flying == 0
        # whoever comes now gets through, and is the probe if one is due
        self.do(self.clock.advance(3600))
        last = self.loop.create_task(self.one(1))
        self.do(self.clock.advance(0))
        assert last in self.ends
        last.cancel()
        self.do(self.clock.advance(0))
        self.loop.close()

    def do(self, work):
        return self.loop.run_until_complete(work)

    @rule(tokens=st.integers(1, 3000))
    def come(self, tokens):
        self.tasks.append(self.loop.create_task(self.one(tokens)))

    async def one(self, tokens):
        me = asyncio.current_task()
        await self.limits.enter(tokens)
        classified = None
        try:
            await self.limits.ready()
            await self.limits.probe()
            self.sent += 1
            self.ends[me] = asyncio.get_running_loop().create_future()
            classified = await self.ends[me]
        finally:
            self.ends.pop(me, None)
            self.limits.leave(classified, estimated=tokens, used=tokens // 2, headers={})

    @rule(pick=st.integers(0, 10**6))
    def cancel(self, pick):
        if self.tasks:
            self.tasks.pop(pick % len(self.tasks)).cancel()

    @rule(
        name=st.sampled_from(["ok", "ok", "server", "not_sent", "ambiguous", "rate_limited"]),
        pick=st.integers(0, 10**6),
        pause=st.sampled_from([None, 0.5, 30.0]),
    )
    def end(self, name, pick, pause):
        if self.ends:
            future = list(self.ends.values())[pick % len(self.ends)]
            if not future.done():
                future.set_result(outcome(name, pause if name == "rate_limited" else None))

    @rule(seconds=st.sampled_from([0.0, 0.01, 1.0, 40.0]))
    def pass_time(self, seconds):
        self.do(self.clock.advance(seconds))

    @invariant()
    def places_are_kept(self):
        alive = sum(not task.done() for task in self.tasks)
        assert self.limits.aimd.flying >= 0
        assert len(self.ends) <= self.limits.aimd.flying <= max(4, alive)
        assert self.limits.aimd.flying <= 4


TestDoor = Door.TestCase
TestDoor.settings = settings(max_examples=40, stateful_step_count=30)
