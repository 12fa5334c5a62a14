"""One run: open the store, recover, plan what is not planned, send, task after task."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from augment.answers import records_of, texts_to_embed
from augment.budget import agree
from augment.engine import Engine
from augment.errors import AugmentStop
from augment.faults import point
from augment.judge import Policy
from augment.limits import Limits
from augment.meter import Meter
from augment.money import load_prices
from augment.plan import entities_within, make_spec, pool_for, wanted
from augment.plan_rows import blocks, plan_row
from augment.providers import answerer_for, is_free, model_of, provider_label
from augment.recover import Recovered, recover
from augment.specs import KINDS
from augment.store import add_spec, open_readonly, plan, price_id, take_over
from augment.store.claims import check_limit, count_open, read_spec
from augment.store.parts import begin_run
from llmrec_pl.errors import ConfigError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Iterator

    from augment.clock import Clock
    from augment.config import AugmentConfig
    from augment.money import Price
    from augment.specs import Kind, TaskSpec
    from augment.store import Store
    from augment.wire import Answerer
    from llmrec_pl.data.dataset import InteractionDataset

_GRACE = 30.0


class Interrupted(AugmentStop):  # a stop asked for is no error
    """A person or a scheduler asked to stop."""

    exit_code = 130


@dataclass(frozen=True, slots=True)
class Options:
    """What a run may do.

    Attributes:
        only: tasks to run, None for all that the config names.
        max_usd: the store's budget from now on; None leaves it to the config.
        no_cap: run without a budget.
        policy: how often to ask again.
        max_reject_rate: share of rejected replies that stops the run.
        limit: ask about so many users and items only; None for all.
    """

    only: frozenset[Kind] | None = None
    max_usd: str | None = None
    no_cap: bool = False
    policy: Policy = field(default_factory=Policy)
    max_reject_rate: float = 0.2
    limit: int | None = None


class Watcher:
    """What a progress display implements; this one shows nothing."""

    def recovered(self, found: Recovered) -> None:
        """Say what the last process left."""

    def planning(self, kind: Kind, n: int) -> None:
        """Say how many answers are planned so far."""

    def task(self, kind: Kind, spec: TaskSpec, to_send: int, meter: Meter, limits: Limits) -> None:
        """Say that a task begins; `meter` and `limits` are looked at while it runs."""

    def task_done(self, kind: Kind) -> None:
        """Say that a task is over."""

    def stopping(self, seconds: float) -> None:
        """Say that nothing more is sent, and how long calls in flight are awaited."""


class Runner:
    """Runs the tasks of a config on an open store.

    Args:
        config: what to ask whom.
        dataset: the data set.
        store: opened for work.
        options: what the run may do.
        clock: for waits and records.
        watcher: shows progress.
        answerers: makes who answers a task; real ones by default.
    """

    def __init__(
        self,
        config: AugmentConfig,
        dataset: InteractionDataset,
        store: Store,
        options: Options,
        *,
        clock: Clock,
        watcher: Watcher | None = None,
        answerers: Callable[[Kind], Answerer] | None = None,
    ) -> None:
        self.config, self.dataset, self.store, self.options = config, dataset, store, options
        self.clock, self.watcher = clock, watcher or Watcher()
        self._answerers = answerers or (lambda kind: answerer_for(kind, config, dataset))
        self._open: dict[str, Answerer] = {}
        self._limits: dict[str, Limits] = {}
        self._engine: Engine | None = None
        self._run: int | None = None
        self._signals = 0
        self.spec_ids: dict[Kind, int] = {}

    @property
    def kinds(self) -> list[Kind]:
        """The tasks of this run, in order."""
        only = self.options.only
        return [
            kind
            for kind in KINDS
            if getattr(self.config.tasks, kind) is not None and (only is None or kind in only)
        ]

    async def run(self) -> None:
        """Run every task.

        Raises:
            AugmentStop: the run cannot go on, or was asked to stop.
            ConfigError: a price, a budget or a pool is missing.
        """
        prices = {kind: self.price(kind) for kind in self.kinds}
        self._budget(free=all(price is None for price in prices.values()))
        found = recover(self.store, self.options.policy, self.clock.wall_ms())
        if found != Recovered():
            self.watcher.recovered(found)
        config = self.config.model_dump_json()
        run = self._run = self.store.do(lambda db: begin_run(db, config, self.clock.wall_ms()))
        status = 1
        try:
            with self._signal_handlers():
                for kind in self.kinds:
                    self._answerer(kind)  # what the last task lacks is said before the first
                for kind in self.kinds:
                    await self._task(kind, prices[kind], run)
            status = 0
        except AugmentStop as stop:
            status = stop.exit_code
            raise
        except (KeyboardInterrupt, asyncio.CancelledError):
            status = Interrupted.exit_code
            raise
        finally:
            for answerer in self._open.values():
                await answerer.close()
            with contextlib.suppress(AugmentStop):
                self.store.do(lambda db: self._end(db, run, status))

    def price(self, kind: Kind) -> Price | None:
        """Return what a task's tokens cost; None where nothing is charged, or nobody knows.

        Raises:
            ConfigError: the model's price is not known and a budget is to be kept.
        """
        if is_free(kind, self.config):
            return None
        model = model_of(kind, self.config)
        price = load_prices(self.config.provider.prices).find(model, "sync")
        if price is None and not self.options.no_cap:
            raise ConfigError(
                f"no price is known for model {model!r}, so no budget can be kept. Give a file "
                "with its price under `provider.prices` (like augment/prices.toml), say "
                "`provider.free=true` for a server of your own, or run with `--no-cap`."
            )
        return price

    def _budget(self, *, free: bool) -> None:
        given, no_cap = self.options.max_usd, self.options.no_cap
        self.store.do(lambda db: agree(db, self.config, max_usd=given, no_cap=no_cap, free=free))

    def _end(self, db: sqlite3.Connection, run: int, status: int) -> None:
        db.execute(
            "UPDATE run SET t1 = ?, exit = ? WHERE id = ?", (self.clock.wall_ms(), status, run)
        )

    # One task ------------------------------------------------------------------------------

    async def _task(self, kind: Kind, price: Price | None, run: int) -> None:
        answerer = self._answerer(kind)
        spec = await self.spec(kind, answerer)
        spec_id = self.spec_ids[kind] = self.plan(spec)
        to_send = self.store.do(lambda db: count_open(db, spec_id))
        if not to_send:
            return
        price_row = None if price is None else self.store.do(lambda db: price_id(db, price))
        limits, meter = self._limits_for(kind), Meter()
        self._engine = Engine(
            self.store,
            spec_id,
            spec,
            answerer,
            limits,
            run=run,
            clock=self.clock,
            concurrency=self.config.provider.concurrency,
            price=price,
            price_row=price_row,
            policy=self.options.policy,
            max_reject_rate=self.options.max_reject_rate,
            meter=meter,
        )
        self.watcher.task(kind, spec, to_send, meter, limits)
        try:
            self._running = asyncio.ensure_future(self._engine.run())
            await self._running
        except asyncio.CancelledError:
            left = recover(self.store, self.options.policy, self.clock.wall_ms())
            raise Interrupted(
                f"interrupted; {left.unknown} calls in flight may have been answered, see "
                "`python -m augment unknown list`. The same command goes on."
            ) from None
        finally:
            self._engine = None
            self.watcher.task_done(kind)

    def _answerer(self, kind: Kind) -> Answerer:
        lane = "embed" if kind == "embed" else "chat"
        if lane not in self._open:
            self._open[lane] = self._answerers(kind)
        return self._open[lane]

    def _limits_for(self, kind: Kind) -> Limits:
        lane, provider = "embed" if kind == "embed" else "chat", self.config.provider
        if lane not in self._limits:
            self._limits[lane] = Limits(
                self.clock,
                rpm=provider.rpm,
                tpm=provider.tpm,
                concurrency=provider.concurrency,
                max_wait_s=provider.max_wait_s,
            )
        return self._limits[lane]

    async def spec(self, kind: Kind, answerer: Answerer) -> TaskSpec:
        """Return the spec of a task; asks a server once how it takes the form of an answer."""
        structured = await self._structured(kind, answerer)
        return make_spec(
            kind, self.config, self.dataset, structured, pool_for(kind, self.config, self.dataset)
        )

    async def _structured(self, kind: Kind, answerer: Answerer) -> str:
        provider = self.config.provider
        if kind == "embed" or provider.name == "heuristic":
            return "none"
        if provider.structured != "auto":
            return provider.structured
        from augment.probe import Accounted, form_key, probe_structured

        name = form_key(provider_label(kind, self.config), model_of(kind, self.config))
        known = self.store.do(
            lambda db: db.execute("SELECT v FROM meta WHERE k = ?", (name,)).fetchone()
        )
        if known is not None:
            return str(known[0])
        if self._run is not None:
            answerer = Accounted(answerer, self.store, self._run, self.price(kind), self.clock)
        mode = await probe_structured(answerer, model_of(kind, self.config), clock=self.clock)
        self.store.do(
            lambda db: db.execute("INSERT INTO meta VALUES (?, ?)", (name, mode)).rowcount
        )
        return mode

    def plan(self, spec: TaskSpec) -> int:
        """Write what a spec wants into the store, unless it is there; returns the spec's id.

        Raises:
            ConfigError: more waits to be sent than the limit leaves.
        """
        now, limit = self.clock.wall_ms(), self.options.limit
        spec_id, planned = self.store.do(lambda db: add_spec(db, spec, now))
        keys = set() if planned and limit is None else self._plan(spec, spec_id)
        self.store.do(lambda db: take_over(db, spec_id))
        if limit is not None:
            self.store.do(lambda db: check_limit(db, spec_id, keys, limit))
        return spec_id

    def _plan(self, spec: TaskSpec, spec_id: int) -> set[bytes]:
        """Plan block by block; returns the keys where a limit keeps them few."""
        limit, keys = self.options.limit, set[bytes]()
        pool = pool_for(spec.kind, self.config, self.dataset)
        texts: Iterable[tuple[int, int, str]] = ()
        if spec.kind == "embed":
            texts = self._texts(spec)
        total = 0
        wants = wanted(spec, self.dataset, pool, texts, limit)
        for rows in blocks(plan_row(spec, want) for want in wants):
            self.store.do(partial(plan, spec=spec_id, rows=rows))
            point("planned")
            total += len(rows)
            keys.update(row.key for row in rows if limit is not None)
            self.watcher.planning(spec.kind, total)
        if spec.kind != "embed" and limit is None:  # texts to embed grow with every answer
            self.store.do(lambda db: _mark_planned(db, spec_id))
        return keys

    def _texts(self, spec: TaskSpec) -> Iterator[tuple[int, int, str]]:
        """Yield what profiles and attributes of this config gave, to be embedded."""
        limit = self.options.limit
        with contextlib.closing(open_readonly(self.store.folder)) as db:
            alone = self.options.only == frozenset({"embed"})
            found = records_of(db, self.config, self.dataset, self.spec_ids, needed=alone)
            for kind, asked in found.items():
                within = (
                    entities_within(read_spec(db, asked), self.dataset, limit) if limit else None
                )
                yield from texts_to_embed(db, kind, asked, spec.settings["fields"], within)

    # Signals -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _signal_handlers(self) -> Iterator[None]:
        """Take signals as a wish to stop; plain handlers, which interrupt planning as well."""
        loop = asyncio.get_running_loop()

        def caught(*_: object) -> None:
            if self._engine is None:
                raise KeyboardInterrupt
            loop.call_soon_threadsafe(self._signalled)

        before: dict[signal.Signals, Any] = {}
        with contextlib.suppress(ValueError):  # not in the main thread
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.signal(number, caught)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _signalled(self) -> None:
        if self._engine is None:  # it ended meanwhile
            raise KeyboardInterrupt
        self._signals += 1
        if self._signals == 1:
            said = (
                "interrupted; calls in flight were awaited and are kept. The same command goes on."
            )
            self._engine.stop(Interrupted(said))
            self.watcher.stopping(_GRACE)
            asyncio.get_running_loop().call_later(_GRACE, self._cancel, self._running)
        else:
            self._cancel(self._running)

    @staticmethod
    def _cancel(running: asyncio.Future[None]) -> None:
        running.cancel()


def _mark_planned(db: sqlite3.Connection, spec: int) -> None:
    db.execute("UPDATE spec SET planned = 1 WHERE id = ?", (spec,))
