"""All limits together, driven at random."""

import asyncio

from fake_clock import FakeClock
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from limit_calls import OK, call, limits_of, outcome


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
        "server fails, next try in 30 s",
        "server fails, one call tries",
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
