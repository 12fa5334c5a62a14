"""How many calls are in flight."""

import asyncio

import pytest
from fake_clock import FakeClock
from limit_calls import OK, call, limits_of, workers

from augment.classify import Classified, Outcome
from augment.throttles import Aimd


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
        assert limits.aimd.limit == 32, "half of what is allowed"
        await workers(limits, clock, lambda _: (OK, 0.5), 64, 200)
        return limits.aimd.limit

    assert clock.run(main()) == 32


@pytest.mark.parametrize(
    ("said", "places"),
    [
        (Classified(Outcome.ambiguous, "unknown", None, "timeout", ""), 6),
        (Classified(Outcome.server, "no", None, "http_503", ""), 6),
        (Classified(Outcome.ambiguous, "unknown", None, "ambiguous", ""), 8),
        (Classified(Outcome.server, "no", None, "http_500", ""), 8),
    ],
)
def test_an_overloaded_server_is_asked_less_at_once_though_it_names_no_rate(said, places):
    clock = FakeClock()

    async def main():
        limits = limits_of(clock)
        for _ in range(4):
            await call(limits, clock, lambda now: (said, 0.1))
        return int(limits.aimd.limit)

    assert clock.run(main()) == places, "one cut an episode"
