"""The breaker: a server that fails is left alone."""

import asyncio

import pytest
from fake_clock import FakeClock
from limit_calls import OK, limits_of, outcome, workers

from augment.errors import RateLimitStop
from augment.throttles import Breaker


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
