"""Requests and tokens a minute."""

import asyncio
import random

import pytest
from fake_clock import FakeClock
from hypothesis import given, settings
from hypothesis import strategies as st
from limit_calls import OK, call, limits_of, outcome

from augment.throttles import DualBucket


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
