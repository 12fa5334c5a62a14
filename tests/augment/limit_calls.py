"""Calls as the engine makes them, through real limits, against a made-up server and clock."""

import asyncio
import itertools
import random

from augment.classify import Classified, Outcome
from augment.limits import Limits


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
