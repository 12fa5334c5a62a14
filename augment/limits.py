"""When a call may be sent: rates, pauses asked for, concurrency and a breaker behind one door."""

from __future__ import annotations

import asyncio
import math
import random
from typing import TYPE_CHECKING

from augment.classify import Outcome
from augment.errors import RateLimitStop
from augment.throttles import Aimd, Breaker, DualBucket, Gate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from augment.classify import Classified
    from augment.clock import Clock

_BURST = 0.5  # seconds' worth; half of what servers usually allow, since calls bunch up on the way
_OVERLOADED = ("timeout", "http_503", "http_529")
"""What a server without rate limits says when it is asked for too much at once."""
_MOST = 1e9  # a larger rate in a header is garbage


class Limits:
    """The one door in front of every call.

    A task calls `enter`, `ready` and `probe` before a send, in this order, and `leave` after
    `enter` whatever happens.

    Args:
        clock: monotonic time.
        rpm: requests a minute; None adopts what the server says, if it does.
        tpm: tokens a minute; the same.
        concurrency: most calls in flight.
        max_wait_s: longest time without a call that is not refused for its rate, or that fails.
        start: calls in flight at first; by default half of `concurrency`, 8 at least.
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
        start: int | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._clock, self._max_wait, self._turn = clock, max_wait_s, asyncio.Lock()
        self._rates = [rpm, tpm]
        self.bucket = DualBucket(clock, rpm, tpm, _BURST)
        self.gate = Gate(clock, rng or random.Random())  # jitter, no secret
        # From 8 on, doubling by the round, three rounds of slow replies would go by half idle.
        self.aimd = Aimd(clock, concurrency, start or max(8, concurrency // 2))
        self.breaker = Breaker(clock)
        self._closed = False

    def close(self) -> None:
        """Let everybody through at once: the run stops, and whoever passes sends nothing."""
        self._closed = True
        for part in (self.bucket, self.gate, self.aimd, self.breaker):
            part.close()

    async def enter(self, tokens: int) -> None:
        """Wait until a call of about so many tokens may be prepared.

        Takes a place, a request and the tokens; if it is cancelled or raises, none of them.

        Raises:
            RateLimitStop: calls were refused for their rate, or failed, for `max_wait_s`, or
                the server asks for a pause that ends later than that.
        """
        async with self._turn:  # so that only one waits with a place in its hand
            await self.aimd.acquire()
            try:
                while True:
                    await self.ready()
                    while self.breaker.blocked:
                        await self.breaker.pause()
                        self._check_patience()
                    await self.bucket.acquire(tokens)
                    if not self.gate.left and not self.breaker.blocked:
                        return
                    self.bucket.unsent(tokens)
            except BaseException:
                self.aimd.release()
                raise

    async def ready(self) -> None:
        """Wait until the server's pause is over.

        Raises:
            RateLimitStop: as in `enter`.
        """
        self._check_patience()
        while self.gate.left:
            await self.gate.pause()
            self._check_patience()

    async def probe(self) -> None:
        """Wait for the breaker, the last door before a call is sent.

        Raises:
            RateLimitStop: as in `enter`.
        """
        owner = asyncio.current_task()
        while True:
            await self.breaker.wait(owner)
            if not self.gate.left:
                return
            await self.ready()

    def _check_patience(self) -> None:
        now = self._clock.monotonic()
        limited, failing = self.gate.limited_since, self.breaker.failing_since
        if self._closed:
            return
        if limited is not None and max(now, self.gate.until) - limited > self._max_wait:
            raise RateLimitStop(
                f"the provider has refused every call for its rate for {now - limited:.0f} s and "
                f"asks for {self.gate.left:.0f} s more; `provider.max_wait_s` is "
                f"{self._max_wait:.0f}. Lower `provider.rpm` and `provider.concurrency`, or run "
                "again later. Nothing is lost."
            )
        if failing is not None and now - failing > self._max_wait and self.breaker.left:
            raise RateLimitStop(
                f"no call has succeeded for {now - failing:.0f} s; `provider.max_wait_s` is "
                f"{self._max_wait:.0f}. Check that the server is up, then run again. Nothing is "
                "lost."
            )

    def leave(
        self,
        classified: Classified | None,
        *,
        estimated: int,
        used: int | None,
        headers: Mapping[str, str],
    ) -> None:
        """Learn from the end of a call; None if it was never sent.

        Args:
            classified: what the reply means.
            estimated: tokens given to `enter`.
            used: tokens by the server's count, None if it gave none.
            headers: of the reply, names in lower case.
        """
        owner = asyncio.current_task()
        if classified is None:
            self.bucket.unsent(estimated)
            self.breaker.abandon(owner)
        else:
            if used is not None:
                self.bucket.refund(estimated - used)
            self._learn(classified, estimated, owner)
            self._adopt(headers)
        self.aimd.release()

    def _learn(self, classified: Classified, estimated: int, owner: object) -> None:
        outcome, pause = classified.outcome, classified.retry_after_s
        if outcome == Outcome.rate_limited:
            self.gate.close_for(pause)
            self.aimd.cut(pause)
        elif outcome in (Outcome.ok, Outcome.refused, Outcome.refused_input):
            self.gate.success()
        elif outcome == Outcome.server and pause is not None:
            self.gate.close_for(pause)
        elif classified.code in _OVERLOADED:
            self.aimd.cut(None)
        if outcome == Outcome.ok:
            self.aimd.success()
        elif outcome == Outcome.not_sent:
            self.bucket.unsent(estimated)
        bad = outcome in (Outcome.not_sent, Outcome.server, Outcome.ambiguous)
        self.breaker.record(owner, good=not bad, unsent=outcome == Outcome.not_sent)

    def _adopt(self, headers: Mapping[str, str]) -> None:
        for i, what in enumerate(("requests", "tokens")):
            if self._rates[i] is None:
                self._rates[i] = _positive(headers.get(f"x-ratelimit-limit-{what}"))
                if self._rates[i] is not None:
                    self.bucket.set_rates(*self._rates)

    def waiting_for(self) -> str:
        """Say what calls wait for, "" if they don't."""
        if self.gate.left:
            return f"rate limit {math.ceil(self.gate.left)} s"
        if self.breaker.open_until is not None:
            left = math.ceil(self.breaker.left)
            return f"server fails, next try in {left} s" if left else "server fails, one call tries"
        return ""


def _positive(text: str | None) -> float | None:
    """Read a rate; some servers send 0 or -1 for none."""
    try:
        value = float(text) if text is not None else 0.0
    except ValueError:
        return None
    return value if 1 <= value <= _MOST else None
