"""Pauses that a server asks for."""

import asyncio
import itertools
import random

import pytest
from fake_clock import FakeClock
from hypothesis import given
from hypothesis import strategies as st
from limit_calls import OK, call, limits_of, outcome, workers

from augment.errors import RateLimitStop
from augment.throttles import Gate


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
