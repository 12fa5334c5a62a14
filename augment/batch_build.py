"""Makes batch files of what is planned: for the Batch API, `vllm run-batch`, or anyone.

A file is on disk before the store knows of it; then one transaction claims its requests, so each
is in one part at most and nobody else sends it. A crash between leaves a file without a part,
which the next build removes.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from augment.batch_files import PartFile, copy_whole, custom_id, request_line
from augment.budget import agree, read_ledger
from augment.errors import BudgetStop
from augment.faults import point
from augment.judge import Policy, call_bound
from augment.money import format_usd, load_prices
from augment.probe import Nobody
from augment.providers import in_process, is_free, model_of
from augment.recover import recover
from augment.runner import Options, Runner, Watcher
from augment.store import price_id
from augment.store.claims import claim
from augment.store.parts import (
    FOLDER,
    NewPart,
    Part,
    PartLine,
    PartState,
    add_part,
    begin_run,
    list_parts,
    read_part,
)
from llmrec_pl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from augment.clock import Clock
    from augment.config import AugmentConfig
    from augment.money import Price
    from augment.specs import Kind, TaskSpec
    from augment.store import Store
    from augment.store.claims import Claimed
    from llmrec_pl.data.dataset import InteractionDataset

MOST_LINES, MOST_BYTES = 50_000, 200_000_000
"""What the Batch API takes in one file."""
_BLOCK = 1_000


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be built.

    Attributes:
        only: tasks; None for all that the config names and a server answers.
        max_lines: most lines of a file.
        max_bytes: largest file.
        handover: folder for copies of the files, which somebody else will answer; nothing is
            reserved for them. None for the Batch API.
        max_usd: the store's budget from now on; None leaves it to the config.
        no_cap: lift the budget; what calls cost is counted all the same.
        limit: ask about so many users and items only; None for all.
    """

    only: frozenset[Kind] | None = None
    max_lines: int = MOST_LINES
    max_bytes: int = MOST_BYTES
    handover: Path | None = None
    max_usd: str | None = None
    no_cap: bool = False
    limit: int | None = None


@dataclass
class Built:
    """What was built.

    Attributes:
        parts: in order.
        too_large: requests whose line alone exceeds the largest file; `run` can send them.
        no_budget: why the rest was left out, if the budget was used up.
    """

    parts: list[Part] = field(default_factory=list)
    too_large: int = 0
    no_budget: BudgetStop | None = None


async def build(
    config: AugmentConfig,
    dataset: InteractionDataset,
    store: Store,
    wish: Wish,
    *,
    clock: Clock,
    watcher: Watcher | None = None,
) -> Built:
    """Plan what is not planned, and put everything that waits to be sent into files.

    Raises:
        BudgetStop: not even one request fits the budget.
        ConfigError: no task goes to a server, a price, a budget or a pool is missing, or the
            server would first have to be asked which form of answers it supports.
    """
    options = Options(only=wish.only, limit=wish.limit)
    runner = Runner(config, dataset, store, options, clock=clock, watcher=watcher)
    kinds = [kind for kind in runner.kinds if not in_process(kind, config)]
    if not kinds:
        raise ConfigError(
            f"no task goes to a server: {', '.join(runner.kinds) or 'none'} of provider "
            f"{config.provider.name!r} are answered in this process by `python -m augment run`. "
            "Choose an LLM with `--provider openai` or `--provider local`."
        )
    prices = {kind: _price(kind, config, wish) for kind in kinds}
    free = all(price is None for price in prices.values())
    store.do(lambda db: agree(db, config, max_usd=wish.max_usd, no_cap=wish.no_cap, free=free))
    recover(store, Policy(), clock.wall_ms())
    (store.folder / FOLDER).mkdir(mode=0o700, exist_ok=True)
    _sweep(store)
    if wish.handover is not None:
        wish.handover.mkdir(parents=True, exist_ok=True)
    run = store.do(lambda db: begin_run(db, config.model_dump_json(), clock.wall_ms()))
    built = Built()
    for kind in kinds:
        spec = await runner.spec(kind, Nobody("building"))
        spec_id = runner.spec_ids[kind] = runner.plan(spec)
        _Builder(store, spec_id, spec, prices[kind], wish, run, clock, built).build()
    if built.no_budget is not None and not built.parts:
        raise built.no_budget
    return built


class _Builder:
    """Fills files with the planned requests of one spec."""

    def __init__(
        self,
        store: Store,
        spec_id: int,
        spec: TaskSpec,
        price: Price | None,
        wish: Wish,
        run: int,
        clock: Clock,
        built: Built,
    ) -> None:
        self.store, self.spec_id, self.spec, self.price = store, spec_id, spec, price
        self.wish, self.run, self.clock, self.built = wish, run, clock, built
        self.price_row = None if price is None else store.do(lambda db: price_id(db, price))

    def build(self) -> None:
        """Write part after part until nothing planned is left, or the budget is used up."""
        planned = self._planned()
        first = next(planned, None)
        while first is not None and self.built.no_budget is None:
            first = self._part(first, planned)

    def _part(self, item: Claimed | None, planned: Iterator[Claimed]) -> Claimed | None:
        """Write one part that begins with `item`; returns the first request that did not fit."""
        name = str(uuid.uuid4())
        left = self._budget_left()
        lines: list[PartLine] = []
        with PartFile(self.store.folder / FOLDER / f"{name}.jsonl") as file:
            while item is not None and len(lines) < self.wish.max_lines:
                text = request_line(item.key, self.spec.endpoint, item.body)
                if len(text) > self.wish.max_bytes:
                    self.built.too_large += 1
                    item = next(planned, None)
                    continue
                bound = call_bound(self.price, [item])
                if left is not None and bound > left:
                    self.built.no_budget = self._used_up(bound)
                    break
                if file.bytes + len(text) > self.wish.max_bytes:
                    break
                file.add(text)
                lines.append(PartLine(item.id, custom_id(item.key), bound))
                left = None if left is None else left - bound
                item = next(planned, None)
            if lines:
                self._keep(name, file, lines)
        return item

    def _keep(self, name: str, file: PartFile, lines: list[PartLine]) -> None:
        handover = self.wish.handover
        part = NewPart(
            uuid=name,
            state=PartState.BUILT if handover is None else PartState.HANDED,
            spec=self.spec_id,
            sha=file.finish(),
            size=file.bytes,
            endpoint=self.spec.endpoint,
            lines=lines,
        )
        point("part_written")
        now = self.clock.wall_ms()
        self.store.do(lambda db: add_part(db, part, run=self.run, price=self.price_row, now=now))
        point("part_built")
        if handover is not None:
            copy_whole(file.path, handover / remote_name(name))
        self.built.parts.append(self.store.do(lambda db: read_part(db, name)))

    def _planned(self) -> Iterator[Claimed]:
        for last in (False, True):
            ask = partial(claim, spec=self.spec_id, limit=_BLOCK, last=last)
            after = 0
            while rows := self.store.do(partial(ask, after=after)):
                yield from rows
                after = rows[-1].id

    def _budget_left(self) -> int | None:
        ledger = self.store.do(read_ledger)
        if ledger.cap_pusd is None or self.price is None:
            return None
        return ledger.cap_pusd - ledger.spent_pusd - ledger.reserved_pusd

    def _used_up(self, bound: int) -> BudgetStop:
        ledger = self.store.do(read_ledger)
        return BudgetStop(
            f"the budget of {format_usd(ledger.cap_pusd or 0)} does not cover every planned "
            f"request: {format_usd(ledger.spent_pusd)} spent, {format_usd(ledger.reserved_pusd)} "
            f"reserved, the next may cost {format_usd(bound)} at batch price. Raise it with "
            "`--max-usd`, or ingest what is answered first."
        )


def remote_name(part: str) -> str:
    """Return the name of a part's file outside the store."""
    return f"llmrec-{part}.jsonl"


def _price(kind: Kind, config: AugmentConfig, wish: Wish) -> Price | None:
    if wish.handover is not None or is_free(kind, config):
        return None
    model = model_of(kind, config)
    price = load_prices(config.provider.prices).find(model, "batch")
    if price is None and not wish.no_cap:
        raise ConfigError(
            f"no batch price is known for model {model!r}, so no budget can be kept. Give a file "
            'with a row of tier "batch" under `provider.prices` (like augment/prices.toml), build '
            "without a budget with `--no-cap`, or for somebody else with `--handover DIR`."
        )
    return price


def _sweep(store: Store) -> None:
    """Remove files that a crash left before the store knew of them."""
    known = {part.uuid for part in store.do(list_parts)}
    for path in (store.folder / FOLDER).glob("*.jsonl*"):
        if path.name.partition(".")[0] not in known:
            path.unlink()
