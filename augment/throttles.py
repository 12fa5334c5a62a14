"""The four reasons to wait before a call: rates, a pause asked for, places, a breaker.

All waits follow the monotonic clock, and end early when what they wait for changes.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

    from augment.clock import Clock

_SHORTEST = 1e-6  # seconds; a shorter sleep may not move a clock of floats


class _Part:
    """Something to wait for, that can change while one waits."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._closed = clock, False
        self._news = asyncio.Event()

    def close(self) -> None:
        """Let everybody through from now on."""
        self._closed = True
        self._changed()

    def _changed(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def _pause(self, seconds: float | None) -> None:
        """Wait for so long or for a change, whichever comes first."""
        if seconds is None:
            await self._news.wait()
            return
        waiting = {
            asyncio.ensure_future(self._news.wait()),
            asyncio.ensure_future(self._sleep(max(seconds, _SHORTEST))),
        }
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()

    async def _sleep(self, seconds: float) -> bool:
        await self._clock.sleep(seconds)
        return True


class DualBucket(_Part):
    """Requests and tokens a minute, taken together, first come first served.

    A call larger than the burst passes when the bucket is full and leaves a debt.

    Args:
        clock: monotonic time.
        rpm: requests a minute, None for no limit.
        tpm: tokens a minute, None for no limit.
        burst_s: seconds' worth that may be taken at once.
    """

    def __init__(
        self, clock: Clock, rpm: float | None, tpm: float | None, burst_s: float = 1.0
    ) -> None:
        super().__init__(clock)
        self._burst, self._turn = burst_s, asyncio.Lock()  # asyncio's locks are fair
        self._at = clock.monotonic()
        self._rates, self._most, self._have = [math.inf] * 2, [math.inf] * 2, [math.inf] * 2
        self.set_rates(rpm, tpm)

    def set_rates(self, rpm: float | None, tpm: float | None) -> None:
        """Change the rates, for those who wait too; a debt stays."""
        self._fill()
        self._rates = [math.inf if rate is None else rate / 60 for rate in (rpm, tpm)]
        self._most = [rate * self._burst for rate in self._rates]
        self._have = [min(have, most) for have, most in zip(self._have, self._most, strict=True)]
        self._changed()

    async def acquire(self, tokens: float) -> None:
        """Wait for one request and its tokens, and take both."""
        async with self._turn:
            while (wait := self._missing(tokens)) > 0 and not self._closed:
                await self._pause(wait)
            self._give(-1, -tokens)

    def refund(self, tokens: float) -> None:
        """Give back what was estimated too high; negative takes what was too low."""
        self._give(0, tokens)

    def unsent(self, tokens: float) -> None:
        """Give back a call that was never sent."""
        self._give(1, tokens)

    def _give(self, requests: float, tokens: float) -> None:
        self._fill()
        self._have = [
            min(most, have + amount) if most < math.inf else math.inf
            for most, have, amount in zip(self._most, self._have, (requests, tokens), strict=True)
        ]
        self._changed()

    def _fill(self) -> None:
        now = self._clock.monotonic()
        passed, self._at = now - self._at, now
        if passed > 0:
            self._have = [
                min(most, have + rate * passed)
                for most, have, rate in zip(self._most, self._have, self._rates, strict=True)
            ]

    def _missing(self, tokens: float) -> float:
        """Return the seconds until a call may pass, 0 if now."""
        self._fill()
        return max(
            0.0 if have >= (needed := min(amount, most)) else (needed - have) / rate
            for rate, most, have, amount in zip(
                self._rates, self._most, self._have, (1.0, tokens), strict=True
            )
        )


class Gate(_Part):
    """Closed for as long as the server asks; longer by up to a fifth, never shorter.

    Args:
        clock: monotonic time.
        rng: of the jitter.

    Attributes:
        until: when it opens, monotonic seconds.
        limited_since: since when calls were refused for their rate without a success between.
    """

    def __init__(self, clock: Clock, rng: random.Random) -> None:
        super().__init__(clock)
        self._rng, self._backoff = rng, 2.0
        self.until = -math.inf
        self.limited_since: float | None = None

    @property
    def left(self) -> float:
        """Seconds until it opens, 0 if it is open."""
        return 0.0 if self._closed else max(0.0, self.until - self._clock.monotonic())

    def close_for(self, seconds: float | None) -> None:
        """Close; without a time asked for, for 2, 4, ... 60 seconds."""
        now = self._clock.monotonic()
        if self.limited_since is None:
            self.limited_since = now
        if seconds is None:
            if now < self.until:
                return  # sent before it closed; says nothing new
            seconds, self._backoff = self._backoff, min(60.0, self._backoff * 2)
        self.until = max(self.until, now + seconds * (1 + 0.2 * self._rng.random()))
        self._changed()

    def success(self) -> None:
        """Note that a call was not refused; a pause already asked for stays."""
        self.limited_since, self._backoff = None, 2.0

    async def pause(self) -> None:
        """Wait until it opens, or closes for longer."""
        await self._pause(self.left)

    async def wait(self) -> None:
        """Wait until it is open."""
        while self.left:
            await self.pause()


class Aimd(_Part):
    """How many calls may be in flight: doubled until the first refusal, then felt out.

    Args:
        clock: monotonic time.
        maximum: never more.
        start: at first.

    Attributes:
        limit: places, in whole numbers rounded down.
        flying: places taken.
    """

    def __init__(self, clock: Clock, maximum: int, start: int = 8) -> None:
        super().__init__(clock)
        self.maximum, self.limit, self.flying = maximum, float(max(1, min(start, maximum))), 0
        self._cool_until, self._refused, self._good = -math.inf, False, 0
        self._turn = asyncio.Lock()

    async def acquire(self) -> None:
        """Wait for a place, first come first served."""
        async with self._turn:
            while self.flying >= int(self.limit) and not self._closed:
                await self._pause(None)
            self.flying += 1

    def release(self) -> None:
        """Give a place back."""
        self.flying -= 1
        self._changed()

    def success(self) -> None:
        """Count a good reply; a round of them raises the limit if most places are taken."""
        if self.flying < 0.8 * int(self.limit):
            return
        self._good += 1
        if self._good < int(self.limit):
            return
        self._good = 0
        grown = max(self.limit * 1.05, self.limit + 1) if self._refused else self.limit * 2
        self.limit = min(float(self.maximum), grown)
        self._changed()

    def cut(self, retry_after: float | None) -> None:
        """Lower the limit by a quarter, once an episode."""
        now = self._clock.monotonic()
        if now < self._cool_until:
            return
        self._refused, self._good = True, 0
        self._cool_until = now + max(15.0, retry_after or 0.0)
        self.limit = max(1.0, self.limit * 0.75)


class Breaker(_Part):
    """Stops sending when most calls fail; then lets single probes through until one succeeds.

    Opens when more than half of the last 40 outcomes were bad, or 20 calls in a row could not be
    sent; for 30 s, and twice as long after each bad probe, up to 10 minutes.

    Args:
        clock: monotonic time.

    Attributes:
        open_until: when the next probe may go, monotonic seconds; None while closed.
        failing_since: when it opened first since the last good probe.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self._last: deque[bool] = deque(maxlen=40)
        self._unsent, self._seconds = 0, 30.0
        self._probe: object | None = None
        self.open_until: float | None = None
        self.failing_since: float | None = None

    @property
    def left(self) -> float:
        """Seconds until the next probe may go, 0 if one may now or it is closed."""
        if self.open_until is None or self._closed:
            return 0.0
        return max(0.0, self.open_until - self._clock.monotonic())

    @property
    def blocked(self) -> bool:
        """Whether nobody may be sent now, not even as a probe."""
        return not self._closed and (self.left > 0 or self._probe is not None)

    async def pause(self) -> None:
        """Wait until a probe is due, or has come back."""
        await self._pause(self.left or None)

    async def wait(self, owner: object) -> None:
        """Wait until it is closed, or until `owner` is the probe."""
        while self.open_until is not None and self._probe is not owner and not self._closed:
            if self.blocked:
                await self.pause()
            else:
                self._probe = owner

    def record(self, owner: object, *, good: bool, unsent: bool = False) -> None:
        """Count an outcome; while open, only that of the probe."""
        if self.open_until is not None:
            if owner is not None and self._probe is owner:
                self._probed(good=good)
            return
        self._unsent = self._unsent + 1 if unsent else 0
        self._last.append(good)
        if 2 * self._last.count(False) > 40 or self._unsent >= 20:
            self.failing_since = self._clock.monotonic()
            self.open_until = self.failing_since + self._seconds

    def abandon(self, owner: object) -> None:
        """Let another call be the probe; this one was not sent."""
        if self._probe is owner:
            self._probe = None
            self._changed()

    def _probed(self, *, good: bool) -> None:
        self._probe = None
        if good:
            self.open_until = self.failing_since = None
            self._unsent, self._seconds = 0, 30.0
            self._last.clear()
        else:
            self._seconds = min(600.0, self._seconds * 2)
            self.open_until = self._clock.monotonic() + self._seconds
        self._changed()
