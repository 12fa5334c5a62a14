"""The loop: claim, reserve and write the intent, send, spool, settle.

One task of one store at a time. Memory holds a window of requests, never the plan; whatever is
planned but not in the window lies in the store.
"""

from __future__ import annotations

import asyncio
import dataclasses
import heapq
import random
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeVar

from augment.classify import Classified, Outcome, classify
from augment.errors import AugmentStop, AuthStop, BudgetStop, QuotaStop, RejectStop, StoreFullStop
from augment.faults import point
from augment.judge import Policy, call_bound, judge_failure, judge_reply
from augment.meter import Meter
from augment.store import AttemptState, State, reserve
from augment.store.claims import Claimed, claim, take
from augment.wire import Call

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from augment.clock import Clock
    from augment.limits import Limits
    from augment.money import Price
    from augment.specs import TaskSpec
    from augment.store import RequestChange, Settlement, Store
    from augment.wire import Answerer, Reply

T = TypeVar("T")
_FIRST_REPLIES = 200
_BACKOFF = (0.5, 60.0)


class Engine:
    """Sends what a spec has planned, and settles each reply.

    Args:
        store: opened for work.
        spec_id: row of the spec in the store.
        spec: the task.
        answerer: who answers.
        limits: rates, concurrency, breaker.
        run: row of this process life.
        price: what tokens cost; None where all is free.
        price_row: its row in the store.
        clock: for waits and records.
        concurrency: most calls in flight.
        policy: how often to ask again.
        max_reject_rate: share of rejected replies, after the first 200, that stops the run.
        meter: counts for the progress display.
        seed: of the jitter.
    """

    def __init__(
        self,
        store: Store,
        spec_id: int,
        spec: TaskSpec,
        answerer: Answerer,
        limits: Limits,
        *,
        run: int,
        clock: Clock,
        concurrency: int,
        price: Price | None = None,
        price_row: int | None = None,
        policy: Policy | None = None,
        max_reject_rate: float = 0.2,
        meter: Meter | None = None,
        seed: int | None = None,
    ) -> None:
        self.store, self.spec_id, self.spec = store, spec_id, spec
        self.answerer, self.limits, self.clock = answerer, limits, clock
        self.run_id, self.price, self.price_row = run, price, price_row
        self.concurrency, self.max_reject_rate = concurrency, max_reject_rate
        self.policy, self.meter = policy or Policy(), meter or Meter()
        self.stopped: BaseException | None = None
        self._window: deque[Claimed] = deque()
        self._forced: deque[list[Claimed]] = deque()
        self._later: list[tuple[float, int, list[Claimed]]] = []
        self._per_call = spec.texts_per_call if spec.kind == "embed" else 1
        self._cursors = {False: 0, True: 0}  # True: of requests that come last
        self._exhausted, self._flying, self._ticket = False, 0, 0
        self._news, self._claiming = asyncio.Event(), asyncio.Lock()
        self._random = random.Random(seed)  # jitter, no secret
        self._replies = self._rejected = self._reserved = 0

    async def run(self) -> None:
        """Send until nothing is left or a reason to stop appears.

        Raises:
            AugmentStop: the run cannot go on; the reason names its remedy.
        """
        workers = [asyncio.create_task(self._work()) for _ in range(self.concurrency)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        if self.stopped is not None and not isinstance(self.stopped, asyncio.CancelledError):
            raise self.stopped

    def stop(self, reason: BaseException) -> None:
        """Send nothing more; calls in flight are awaited by `run`."""
        if self.stopped is None:
            self.stopped = reason
        self.limits.close()
        self._notify()

    async def _work(self) -> None:
        try:
            while (items := await self._next()) is not None:
                try:
                    await self._serve(items)
                finally:
                    self._flying -= 1
                    self._notify()
        except Exception as reason:  # whatever it is: the other calls in flight are paid for
            self.stop(reason)
            if not isinstance(reason, AugmentStop):
                self.stopped = reason  # a fault of ours does not hide behind a wish to stop

    # What to send next ---------------------------------------------------------------------

    async def _next(self) -> list[Claimed] | None:
        """Return the requests of the next call; None when there is nothing left to do."""
        while self.stopped is None:
            if (items := self._ready()) is not None:
                self._flying += 1
                return items
            if not self._exhausted:
                await self._refill()
                continue
            if not self._flying and not self._later:
                return None
            wait = self._later[0][0] - self.clock.monotonic() if self._later else None
            await self._pause(None if wait is None else max(0.0, wait))
        return None

    def _notify(self) -> None:
        """Wake everybody who waits for something to change."""
        self._news.set()
        self._news = asyncio.Event()

    async def _pause(self, seconds: float | None) -> None:
        """Wait for news, but no longer than until the next retry is due."""
        news = asyncio.ensure_future(self._news.wait())
        waiting = {news}
        if seconds is not None:
            waiting.add(asyncio.ensure_future(self._tick(seconds)))
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()

    async def _tick(self, seconds: float) -> Literal[True]:
        await self.clock.sleep(seconds)
        return True

    def _ready(self) -> list[Claimed] | None:
        if self._forced:
            return self._forced.popleft()
        if self._later and self._later[0][0] <= self.clock.monotonic():
            return heapq.heappop(self._later)[2]
        if not self._window:
            return None
        return take(self._window, self._per_call)

    async def _refill(self) -> None:
        async with self._claiming:
            if self._window or self._exhausted:
                return
            limit = max(4 * self.concurrency, 2 * self._per_call)
            rows = await self._done(self.store.put(partial(self._claim, limit=limit)))
            point("claimed")
            self._window.extend(rows)
            self._exhausted = not rows

    def _claim(self, db: sqlite3.Connection, limit: int) -> list[Claimed]:
        for last, after in self._cursors.items():
            if rows := claim(db, self.spec_id, after, limit, last=last):
                self._cursors[last] = rows[-1].id
                return rows
        return []

    # One call ------------------------------------------------------------------------------

    async def _serve(self, items: list[Claimed]) -> None:
        estimate = self.meter.estimate(items)
        await self.limits.enter(estimate)
        classified: Classified | None = None
        settlement: Settlement | None = None
        reply: Reply | None = None
        reserved = 0
        try:
            if self.stopped is not None:
                return
            attempt, bound = await self._reserve(items)
            if attempt is None:
                return
            reserved = 1
            self._reserved += 1
            point("intent")
            try:
                await self.limits.ready()
                await self.limits.probe()
            except AugmentStop as reason:
                self.stop(reason)
            if self.stopped is not None:
                settlement = self._withdrawn(items, attempt)
            else:
                self.meter.sent += 1
                reply = await self.answerer.send(self._call(items), self._journal(attempt))
                classified = classify(reply)
                settlement = self._judge(items, attempt, bound, classified, reply)
            point("judged")
            await self._done(self.store.settle(settlement))
        finally:
            self._reserved -= reserved
            used = settlement.usage if settlement is not None else None
            self.limits.leave(
                classified,
                estimated=estimate,
                used=None if used is None else used.input + used.output,
                headers={} if reply is None else reply.headers,
            )
        await self._follow(items, settlement, classified)

    async def _reserve(self, items: Sequence[Claimed]) -> tuple[int | None, int]:
        """Write the intent; wait for calls in flight to give back budget before giving up."""
        bound = call_bound(self.price, items)
        ids = [item.id for item in items]
        while True:
            try:
                attempt = await self._done(
                    self.store.put(
                        lambda db: reserve(
                            db,
                            run=self.run_id,
                            lane="sync",
                            requests=ids,
                            bound_pusd=bound,
                            price=self.price_row,
                            now=self.clock.wall_ms(),
                        )
                    )
                )
            except BudgetStop as reason:
                if not self._reserved:  # nobody is left who could give some back
                    self.stop(reason)
                    return None, bound
                await self._pause(None)
                if self.stopped is not None:
                    return None, bound
            else:
                return attempt, bound

    def _call(self, items: Sequence[Claimed]) -> Call:
        body = items[0].body
        if self.spec.kind == "embed":
            body["input"] = [item.body["input"] for item in items]
        return Call(self.spec.endpoint, body, tuple(item.key for item in items))

    def _journal(self, attempt: int) -> Callable[[bytes], None]:
        def keep(body: bytes) -> None:
            try:
                self.store.spool.write(attempt, body)
            except OSError as error:  # this reply is still committed; the next might be lost
                self.stop(StoreFullStop(f"the spool of the store cannot be written: {error}."))
            point("spooled")

        return keep

    def _judge(
        self,
        items: Sequence[Claimed],
        attempt: int,
        bound: int,
        classified: Classified,
        reply: Reply,
    ) -> Settlement:
        now = self.clock.wall_ms()
        if classified.outcome == Outcome.ok and reply.body is not None:
            return judge_reply(
                self.spec,
                items,
                reply.body,
                attempt=attempt,
                price=self.price,
                reserved=bound,
                policy=self.policy,
                now=now,
                reply=reply,
            )
        return judge_failure(
            items,
            classified,
            attempt=attempt,
            policy=self.policy,
            now=now,
            embeddings=self.spec.kind == "embed",
            reply=reply,
        )

    def _withdrawn(self, items: Sequence[Claimed], attempt: int) -> Settlement:
        """Settle an intent that was never sent, since the run stopped first."""
        unsent = Classified(Outcome.not_sent, "no", None, "withdrawn", "the run stopped first")
        return judge_failure(
            items, unsent, attempt=attempt, policy=self.policy, now=self.clock.wall_ms()
        )

    # What follows --------------------------------------------------------------------------

    async def _follow(
        self, items: list[Claimed], settlement: Settlement, classified: Classified | None
    ) -> None:
        if classified is None:
            return
        self.meter.settled(settlement, items, self.spec.kind)
        self._stop_reasons(settlement, classified)
        again = [
            _moved(item, change)
            for item, change in zip(items, settlement.changes, strict=True)
            if change.state == State.PLANNED
        ]
        if any(change.child is not None for change in settlement.changes):
            self._exhausted = False  # follow-ups have larger ids than the cursor
        if not again:
            return
        if classified.outcome == Outcome.refused_input and len(again) > 1:
            half = len(again) // 2
            self._forced.extend([again[:half], again[half:]])
        elif classified.outcome in (Outcome.ok, Outcome.rate_limited):
            self._forced.append(again)
        else:
            low, high = _BACKOFF
            tries = max(item.tries + item.unknowns for item in again)
            pause = self._random.uniform(0, min(high, low * 2 ** min(tries, 10)))
            self._ticket += 1
            heapq.heappush(self._later, (self.clock.monotonic() + pause, self._ticket, again))

    def _stop_reasons(self, settlement: Settlement, classified: Classified) -> None:
        reason: AugmentStop | None = None
        if classified.outcome == Outcome.quota:
            reason = QuotaStop(
                f"the account has no credit left: {classified.sentence} Top it up, then run the "
                "same command again; nothing is lost."
            )
        elif classified.outcome == Outcome.auth:
            reason = AuthStop(
                f"the provider refused the call: {classified.sentence} Check the key's "
                "environment variable, the model's name and `base_urls`."
            )
        elif any(kind == "usage_over_bound" for kind, _ in settlement.anomalies):
            reason = BudgetStop(
                "a reply cost more than the most it could; the server's `usage` and our bound "
                "disagree. See `python -m augment cost --audit` before you go on."
            )
        if settlement.state == AttemptState.OK:
            self._replies += len(settlement.changes)
            self._rejected += sum(bool(change.rejects) for change in settlement.changes)
            share = self._rejected / self._replies
            if self._replies >= _FIRST_REPLIES and share > self.max_reject_rate and not reason:
                reason = RejectStop(
                    f"{self._rejected} of {self._replies} replies failed validation, most "
                    f"recently {settlement.changes[-1].code!r}; the model or the prompt does not "
                    "suit the task. Look at `python -m augment status`, then go on with "
                    "`--max-reject-rate 1` or another model."
                )
        if reason is not None:
            self.stop(reason)

    async def _done(self, future: Future[T]) -> T:
        """Await a commit; it goes on even if the waiting task is cancelled."""
        return await asyncio.shield(asyncio.wrap_future(future))


def _moved(item: Claimed, change: RequestChange) -> Claimed:
    return dataclasses.replace(
        item,
        tries=item.tries + 1 + change.tries,
        rejects=item.rejects + change.rejects,
        unknowns=item.unknowns + change.unknowns,
    )
