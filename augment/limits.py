"""When a call may be sent: rates, pauses asked for, concurrency, and a breaker.

All waits follow the monotonic clock. `Limits` puts the four parts in one door.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from typing import TYPE_CHECKING

from augment.classify import Outcome
from augment.errors import RateLimitStop

if TYPE_CHECKING:
    from collections.abc import Mapping

    from augment.classify import Classified
    from augment.clock import Clock


class DualBucket:
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
        self._clock, self._burst = clock, burst_s
        self._turn = asyncio.Lock()
        self._at = clock.monotonic()
        self.set_rates(rpm, tpm)

    def set_rates(self, rpm: float | None, tpm: float | None) -> None:
        """Change the rates; the bucket starts full."""
        self._rates = [None if rate is None else rate / 60 for rate in (rpm, tpm)]
        self._have = [0.0 if rate is None else max(1.0, rate * self._burst) for rate in self._rates]

    def _fill(self) -> None:
        now = self._clock.monotonic()
        passed, self._at = now - self._at, now
        for i, rate in enumerate(self._rates):
            if rate is not None:
                self._have[i] = min(max(1.0, rate * self._burst), self._have[i] + rate * passed)

    async def acquire(self, tokens: float) -> None:
        """Wait for one request and its tokens."""
        async with self._turn:  # asyncio locks are fair
            while (wait := self._missing(tokens)) > 0:
                await self._clock.sleep(wait)
            for i, amount in enumerate((1.0, tokens)):
                if self._rates[i] is not None:
                    self._have[i] -= amount

    def _missing(self, tokens: float) -> float:
        self._fill()
        wait = 0.0
        for rate, have, amount in zip(self._rates, self._have, (1.0, tokens), strict=True):
            if rate is None:
                continue
            needed = min(amount, max(1.0, rate * self._burst))
            if have < needed - 1e-9:
                wait = max(wait, (needed - have) / rate)
        return wait

    def refund(self, tokens: float) -> None:
        """Give back what was estimated too high; negative takes what was too low."""
        self._fill()
        rate = self._rates[1]
        if rate is not None:
            self._have[1] = min(max(1.0, rate * self._burst), self._have[1] + tokens)

    def unsent(self, tokens: float) -> None:
        """Give back a call that was never sent."""
        self.refund(tokens)
        rate = self._rates[0]
        if rate is not None:
            self._have[0] = min(max(1.0, rate * self._burst), self._have[0] + 1)


class Gate:
    """Closed for as long as the server asks; later by up to a fifth, never earlier.

    Args:
        clock: monotonic time.
        rng: of the jitter.
    """

    def __init__(self, clock: Clock, rng: random.Random) -> None:
        self._clock, self._rng = clock, rng
        self.until = 0.0
        self.limited_since: float | None = None
        self._backoff = 2.0

    def close_for(self, seconds: float | None) -> None:
        """Close; without a time asked for, for 2, 4, ... 60 seconds."""
        now = self._clock.monotonic()
        if self.limited_since is None:
            self.limited_since = now
        if seconds is None:
            if now < self.until:
                return  # the same episode: further refusals of calls sent before it
            seconds, self._backoff = self._backoff, min(60.0, self._backoff * 2)
        self.until = max(self.until, now + seconds * (1 + 0.2 * self._rng.random()))

    def success(self) -> None:
        """A call went through."""
        self.limited_since, self._backoff = None, 2.0

    async def wait(self) -> None:
        """Wait until it is open."""
        while (left := self.until - self._clock.monotonic()) > 0:
            await self._clock.sleep(left)


class Aimd:
    """How many calls may be in flight: doubled until the first refusal, then felt out.

    Args:
        clock: monotonic time.
        maximum: never more.
        start: at first.
    """

    def __init__(self, clock: Clock, maximum: int, start: int = 8) -> None:
        self._clock, self.maximum = clock, maximum
        self.limit = float(min(start, maximum))
        self.flying = 0
        self._cool_until = 0.0
        self._met, self._good = False, 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def acquire(self) -> None:
        """Wait for a place."""
        if self.flying < int(self.limit) and not self._waiting:
            self.flying += 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.release()  # the place was given just before
            else:
                self._waiting.remove(place)
            raise

    def release(self) -> None:
        """Give a place back."""
        self.flying -= 1
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self.flying < int(self.limit):
            place = self._waiting.popleft()
            if not place.done():
                self.flying += 1
                place.set_result(None)

    def success(self) -> None:
        """Count a good reply; a round of them raises the limit."""
        if self.flying < 0.8 * int(self.limit):
            return
        self._good += 1
        if self._good >= int(self.limit):
            self._good = 0
            grown = self.limit * 1.05 if self._met else self.limit * 2
            self.limit = min(float(self.maximum), max(grown, self.limit + 1))
            self._admit()

    def cut(self, retry_after: float | None) -> None:
        """Lower the limit, once an episode."""
        now = self._clock.monotonic()
        if now < self._cool_until:
            return
        self._met, self._good = True, 0
        self._cool_until = now + max(15.0, retry_after or 0.0)
        self.limit = max(1.0, self.limit * 0.75)


class Breaker:
    """Stops sending when most calls fail; lets single probes through until one succeeds.

    Args:
        clock: monotonic time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last: deque[bool] = deque(maxlen=40)
        self._pause = 30.0
        self._unsent = 0
        self.open_until: float | None = None
        self._probing = False

    async def wait(self) -> None:
        """Wait until closed, or until it is this call's turn to probe."""
        while self.open_until is not None:
            left = self.open_until - self._clock.monotonic()
            if left <= 0 and not self._probing:
                self._probing = True
                return
            await self._clock.sleep(max(left, 0.25))

    def record(self, *, good: bool, unsent: bool = False) -> None:
        """Count an outcome."""
        self._unsent = self._unsent + 1 if unsent else 0
        if self.open_until is not None:
            if good:
                self._close()
            elif self._probing:
                self._probing = False
                self._pause = min(600.0, self._pause * 2)
                self.open_until = self._clock.monotonic() + self._pause
            return
        self._last.append(good)
        mostly_bad = len(self._last) >= 20 and sum(self._last) < len(self._last) / 2
        if mostly_bad or self._unsent >= 20:
            self.open_until = self._clock.monotonic() + self._pause

    def cancelled(self) -> None:
        """A probe was never sent."""
        self._probing = False

    def _close(self) -> None:
        self.open_until, self._probing, self._pause, self._unsent = None, False, 30.0, 0
        self._last.clear()


class Limits:
    """The one door in front of every call.

    Args:
        clock: monotonic time.
        rpm: requests a minute; None adopts what the server says.
        tpm: tokens a minute; the same.
        concurrency: most calls in flight.
        max_wait_s: longest time to be refused for rate without a single success.
        start: calls in flight at first.
        rng: of the jitter.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        rpm: float | None,
        tpm: float | None,
        concurrency: int,
        max_wait_s: float,
        start: int = 8,
        rng: random.Random | None = None,
    ) -> None:
        self._clock, self._max_wait = clock, max_wait_s
        self._given = rpm is not None or tpm is not None
        self.bucket = DualBucket(clock, rpm, tpm)
        self.gate = Gate(clock, rng or random.Random())  # jitter, no secret
        self.aimd = Aimd(clock, concurrency, start)
        self.breaker = Breaker(clock)

    async def enter(self, tokens: int) -> None:
        """Wait until a call of about so many tokens may be prepared.

        Raises:
            RateLimitStop: refused for rate for longer than `max_wait_s`.
        """
        self._check_patience()
        await self.aimd.acquire()
        try:
            await self.bucket.acquire(tokens)
            await self.ready()
        except BaseException:
            self.aimd.release()
            raise

    async def ready(self) -> None:
        """Wait until nothing stands against sending at this moment.

        Raises:
            RateLimitStop: as in `enter`.
        """
        await self.gate.wait()
        self._check_patience()

    async def probe(self) -> None:
        """Wait for the breaker, the last door before a call is sent."""
        await self.breaker.wait()

    def _check_patience(self) -> None:
        since = self.gate.limited_since
        if since is not None and self._clock.monotonic() - since > self._max_wait:
            raise RateLimitStop(
                f"the provider refused every call for its rate for {self._max_wait:.0f} s; "
                "lower `provider.rpm` and `provider.concurrency`, or run again later. Nothing "
                "is lost."
            )

    def leave(
        self,
        classified: Classified | None,
        *,
        estimated: int,
        used: int | None,
        headers: Mapping[str, str],
    ) -> None:
        """Learn from the end of a call; None if it was never sent."""
        self.aimd.release()
        if classified is None:
            self.bucket.unsent(estimated)
            self.breaker.cancelled()
            return
        outcome = classified.outcome
        if outcome == Outcome.rate_limited:
            self.gate.close_for(classified.retry_after_s)
            self.aimd.cut(classified.retry_after_s)
            self.breaker.cancelled()
            return
        bad = outcome in (Outcome.not_sent, Outcome.server, Outcome.ambiguous)
        self.breaker.record(good=not bad, unsent=outcome == Outcome.not_sent)
        if outcome == Outcome.not_sent:
            self.bucket.unsent(estimated)
        elif used is not None:
            self.bucket.refund(estimated - used)
        if outcome == Outcome.ok:
            self.gate.success()
            self.aimd.success()
            self._adopt(headers)

    def _adopt(self, headers: Mapping[str, str]) -> None:
        if self._given:
            return
        found = [_positive(headers.get(f"x-ratelimit-limit-{what}")) for what in _WHAT]
        if any(rate is not None for rate in found):
            self._given = True
            self.bucket.set_rates(*found)

    def waiting_for(self) -> str:
        """Say what calls wait for, "" if they don't."""
        now = self._clock.monotonic()
        if self.gate.until > now:
            return f"rate limit, {self.gate.until - now:.0f} s"
        if self.breaker.open_until is not None:
            return f"failures, next try in {max(0.0, self.breaker.open_until - now):.0f} s"
        return ""


_WHAT = ("requests", "tokens")


def _positive(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else 0.0
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None
