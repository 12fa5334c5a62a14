"""Time that passes only when nobody has anything left to do.

    clock = FakeClock()
    result = clock.run(main())        # hours of sleeps in milliseconds

`run` moves the time to the next sleeper as soon as no callback of the loop is due. Work outside
the loop (threads, sockets) does not count as something to do; with `grace_s` the clock waits that
many real seconds for such news before each move.
"""

from __future__ import annotations

import asyncio
import heapq


class FakeClock:
    """A clock whose hands a test moves."""

    def __init__(self, start=1000.0, wall_ms=1_800_000_000_000, grace_s=0.0):
        self._now, self._start, self._wall_ms = start, start, wall_ms
        self._grace_s, self._ticket, self._driven = grace_s, 0, False
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def monotonic(self):
        return self._now

    def wall_ms(self):
        return self._wall_ms + round(1000 * (self._now - self._start))

    def jump_wall(self, ms):
        """Set the wall clock forward or back, as people and time servers do."""
        self._wall_ms += ms

    async def sleep(self, seconds):
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        await self._until(self._now + seconds)

    async def _until(self, due):
        future = asyncio.get_running_loop().create_future()
        self._ticket += 1
        heapq.heappush(self._sleepers, (due, self._ticket, future))
        await future

    async def advance(self, seconds):
        """Let time pass, waking sleepers in order; what they start in between counts."""
        end = self._now + seconds
        if self._driven:
            await self._until(end)
            await self._until(end)  # comes up only when all that the first one woke is idle
            return
        await self._settle()
        while (due := self._next()) is not None and due <= end:
            self._wake(due)
            await self._settle()
        self._now = end

    def run(self, main):
        """Run a coroutine to its end in a loop of its own; time moves when all are idle."""
        self._driven = True
        try:
            return asyncio.run(self._drive(main))
        finally:
            self._driven = False

    async def _drive(self, main):
        task = asyncio.ensure_future(main)
        while True:
            await self._settle()
            if task.done():
                return task.result()
            due = self._next()
            if due is None:
                # only real work can go on from here; none for so long is a deadlock
                done, _ = await asyncio.wait({task}, timeout=max(0.05, self._grace_s))
                if not done and self._next() is None and not self._grace_s:
                    task.cancel()
                    await asyncio.wait({task})
                    raise AssertionError("everybody waits and nobody sleeps")
                continue
            self._wake(due)

    async def _settle(self):
        if self._grace_s:
            await asyncio.sleep(self._grace_s)
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0)
        while loop._ready:
            await asyncio.sleep(0)

    def _next(self):
        while self._sleepers and self._sleepers[0][2].done():
            heapq.heappop(self._sleepers)
        return self._sleepers[0][0] if self._sleepers else None

    def _wake(self, due):
        self._now = max(self._now, due)
        while (due := self._next()) is not None and due <= self._now:
            heapq.heappop(self._sleepers)[2].set_result(None)
