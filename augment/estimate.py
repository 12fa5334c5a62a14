"""What a run would ask, and what that costs: every prompt is rendered, nothing is sent or written.

Each task gets three figures: low, expected, and the bound that the budget reserves by. What the
store knows already (answers, planned requests, tokens as a server counted them) is taken in.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from augment.money import FREE, bound_cost, bound_input, bound_output, load_prices
from augment.plan import entities_within, make_spec, pool_for, wanted
from augment.probe import form_key
from augment.providers import in_process, is_free, model_of, provider_label
from augment.specs import KINDS, request_key
from augment.store import MAIN, open_readonly
from augment.store.claims import read_spec
from augment.store.states import State
from augment.tokens import Tokens, calibrated, guessed
from augment.wire import TEXT_TOKENS_PER_CALL

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from augment.config import AugmentConfig
    from augment.money import Price
    from augment.plan import Text
    from augment.specs import Kind, TaskSpec
    from llmrec_pl.data.dataset import InteractionDataset


@dataclass(frozen=True, slots=True)
class TaskEstimate:
    """One task.

    Attributes:
        kind: the task.
        provider: who answers.
        model: name of the model.
        wanted: answers wanted, skipped ones included.
        skipped: answers not asked for, by the reason.
        to_pay: requests to send.
        paid: requests that are answered already.
        duplicates: wanted answers that share a request with another one.
        set_aside: requests in quarantine or held, which a run leaves alone.
        calls: HTTP calls.
        tokens_in: low, expected and most.
        tokens_out: the same for answers.
        pusd: low, expected and most cost in pico-USD; None if no price is known.
        batch_pusd: expected cost by the Batch API; None if no price is known.
        seconds: at the config's rates; None without any.
        calibrated: whether token figures come from this store's replies.
    """

    kind: Kind
    provider: str
    model: str
    wanted: int
    skipped: dict[str, int]
    to_pay: int
    paid: int
    duplicates: int
    set_aside: int
    calls: int
    tokens_in: tuple[int, int, int]
    tokens_out: tuple[int, int, int]
    pusd: tuple[int, int, int] | None
    batch_pusd: int | None
    seconds: float | None
    calibrated: bool


@dataclass(frozen=True, slots=True)
class Estimate:
    """All tasks of a config, and what the figures take for granted."""

    tasks: list[TaskEstimate]
    notes: list[str]

    @property
    def pusd(self) -> tuple[int, int, int] | None:
        """Low, expected and most cost of all tasks; None if a price is missing."""
        known = [task.pusd for task in self.tasks if task.pusd is not None]
        if len(known) < len(self.tasks):
            return None
        low, expected, most = (sum(figures) for figures in zip((0, 0, 0), *known, strict=True))
        return low, expected, most


@dataclass
class _Count:
    """Sums over the requests of a task, in units of whole requests even where sampled."""

    wanted: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    to_pay: float = 0.0
    paid: float = 0.0
    duplicates: float = 0.0
    set_aside: float = 0.0
    tokens_in: float = 0.0
    tokens_out: float = 0.0
    bound_in: float = 0.0
    bound_out: float = 0.0


def estimate(
    config: AugmentConfig,
    dataset: InteractionDataset,
    only: frozenset[Kind] | None = None,
    *,
    sample: int | None = None,
    exact: Callable[[str], int] | None = None,
    limit: int | None = None,
) -> Estimate:
    """Estimate what `run` would send and cost.

    Args:
        config: what to ask whom.
        dataset: the data set.
        only: tasks; None for all of the config.
        sample: users whose prompts are rendered, picked by a fixed seed; None for all. Items
            always are.
        exact: counts the tokens of a text; a guess by bytes without.
        limit: what a run would send that asks about so many users and items only; not together
            with `sample`.

    Raises:
        ConfigError: the candidate pool is missing.
    """
    kinds = [
        kind
        for kind in KINDS
        if getattr(config.tasks, kind) is not None and (only is None or kind in only)
    ]
    notes: list[str] = []
    with _opened(config.store) as db:
        maker = _Estimator(config, dataset, db, sample, limit, exact, notes)
        tasks = [maker.task(kind) for kind in kinds]
    return Estimate(tasks, notes)


@contextlib.contextmanager
def _opened(store: Path) -> Iterator[sqlite3.Connection | None]:
    if not (store / MAIN).is_file():
        yield None
        return
    with contextlib.closing(open_readonly(store)) as db:
        yield db


class _Estimator:
    def __init__(
        self,
        config: AugmentConfig,
        dataset: InteractionDataset,
        db: sqlite3.Connection | None,
        sample: int | None,
        limit: int | None,
        exact: Callable[[str], int] | None,
        notes: list[str],
    ) -> None:
        self.config, self.dataset, self.db = config, dataset, db
        self.exact, self.notes, self.limit = exact, notes, limit
        self.prices = load_prices(config.provider.prices)
        self.sampled, self.factor = _sampled(dataset, sample)
        self.open_answers: dict[str, float] = {}

    def task(self, kind: Kind) -> TaskEstimate:
        spec = make_spec(
            kind,
            self.config,
            self.dataset,
            self._structured(kind),
            pool_for(kind, self.config, self.dataset),
        )
        tokens = calibrated(self.db, spec) or guessed(spec, self.exact)
        count = self._embeddings(spec, tokens) if kind == "embed" else self._chat(spec, tokens)
        return self._priced(spec, count, tokens)

    def _structured(self, kind: Kind) -> str:
        """Return what a run would use; a server's own word if the store has it."""
        provider = self.config.provider
        if kind == "embed" or provider.name == "heuristic":
            return "none"
        if provider.structured != "auto":
            return provider.structured
        name = form_key(provider_label(kind, self.config), model_of(kind, self.config))
        if self.db is not None:
            row = self.db.execute("SELECT v FROM meta WHERE k = ?", (name,)).fetchone()
            if row is not None:
                return str(row[0])
        task: Any = getattr(self.config.tasks, kind)
        if task.prompt_set == "strict-1":
            note = f"{model_of(kind, self.config)} is taken to support JSON schemas; a run asks it"
            if note not in self.notes:
                self.notes.append(note)
        return "json_schema"

    # Counting ------------------------------------------------------------------------------

    def _chat(self, spec: TaskSpec, tokens: Tokens) -> _Count:
        users = spec.kind in ("pairs", "profiles")
        dataset, factor = (self.sampled, self.factor) if users else (self.dataset, 1.0)
        pool = pool_for(spec.kind, self.config, self.dataset)
        count = self._count(spec, tokens, wanted(spec, dataset, pool, limit=self.limit), factor)
        if users and factor > 1:  # the rest of the users was hidden by taking their history away
            count.skipped = _true_skips(self.dataset, spec.draws, count.skipped)
        self.open_answers[spec.kind] = count.to_pay
        return count

    def _count(self, spec: TaskSpec, tokens: Tokens, wants: Iterable[Any], factor: float) -> _Count:
        count, seen = _Count(), set[bytes]()
        last = None
        for want in wants:
            count.wanted += 1
            if want.body is None:
                count.skipped[want.skip or "skipped"] += 1
                continue
            if want.body is last:
                continue  # further items of the same call
            last = want.body
            draw = 0 if spec.kind == "embed" else want.field
            key = request_key(spec.provider, spec.endpoint, want.body, draw)
            if key[:12] in seen:
                count.duplicates += factor
                continue
            seen.add(key[:12])
            state = self._state(key)
            if state in (State.DONE, State.FOLLOWED):
                count.paid += factor
            elif state in (State.QUARANTINED, State.UNKNOWN, State.IN_BATCH):
                count.set_aside += factor
            else:
                _add(count, tokens, want.body, factor)
        return count

    def _state(self, key: bytes) -> State | None:
        """Return the state of a request, or of its last follow-up where that is still open."""
        if self.db is None:
            return None
        query = "SELECT state, child FROM request WHERE "
        row = self.db.execute(f"{query} key = ?", (key,)).fetchone()
        while row is not None and row[0] == State.FOLLOWED and row[1] is not None:
            row = self.db.execute(f"{query} id = ?", (row[1],)).fetchone()
        return None if row is None else State(row[0])

    def _embeddings(self, spec: TaskSpec, tokens: Tokens) -> _Count:
        """Count known texts, and guess those that answers to come will give."""
        count = self._count(spec, tokens, wanted(spec, self.dataset, None, self._texts(spec)), 1.0)
        n_fields = len(spec.settings["fields"]) - 1
        items = getattr(self.config.tasks.attributes, "items_per_call", 1)
        for kind, texts, distinct, text in (
            ("profiles", 1, 1.0, PROFILE),
            ("attributes", items * n_fields, DISTINCT_SHARE, ATTRIBUTE),
        ):
            n = texts * self.open_answers.get(kind, 0.0)
            if n:
                count.wanted += round(n)
                count.duplicates += n * (1 - distinct)
                count.to_pay += n * distinct
                count.tokens_in += n * distinct * tokens.input({"input": "x" * text.usual})
                count.bound_in += n * bound_input({"input": "x" * text.most})
        return count

    def _texts(self, spec: TaskSpec) -> Iterator[Text]:
        from augment.answers import find_spec, texts_to_embed

        if self.db is None:
            return
        for kind in ("profiles", "attributes"):
            task: Any = getattr(self.config.tasks, kind)
            found = None
            if task is not None:
                found = find_spec(self.db, kind, self.config, self.dataset)
            if found is not None:
                within = None
                if self.limit is not None:
                    within = entities_within(read_spec(self.db, found), self.dataset, self.limit)
                yield from texts_to_embed(self.db, kind, found, spec.settings["fields"], within)

    # Money and time ------------------------------------------------------------------------

    def _priced(self, spec: TaskSpec, count: _Count, tokens: Tokens) -> TaskEstimate:
        figures_in = figures_out = (0, 0, 0)
        if not in_process(spec.kind, self.config):
            figures_in = _whole(count.tokens_in * tokens.low, count.tokens_in, count.bound_in)
            figures_out = _whole(count.tokens_out * tokens.low, count.tokens_out, count.bound_out)
        free = is_free(spec.kind, self.config)
        price = FREE if free else self.prices.find(spec.model, "sync")
        batch = FREE if free else self.prices.find(spec.model, "batch")
        if price is None:
            self.notes.append(
                f"no price is known for {spec.model!r}; give one under `provider.prices`"
            )
        calls = count.to_pay
        if spec.kind == "embed":
            fullest = max(1.0, count.bound_in / TEXT_TOKENS_PER_CALL)
            calls = max(calls / spec.texts_per_call, fullest) if calls else 0
        return TaskEstimate(
            kind=spec.kind,
            provider=spec.provider,
            model=spec.model,
            wanted=count.wanted,
            skipped=dict(count.skipped),
            to_pay=round(count.to_pay),
            paid=round(count.paid),
            duplicates=round(count.duplicates),
            set_aside=round(count.set_aside),
            calls=-int(-calls // 1),
            tokens_in=figures_in,
            tokens_out=figures_out,
            pusd=None if price is None else _cost(price, figures_in, figures_out),
            batch_pusd=None if batch is None else _cost(batch, figures_in, figures_out)[1],
            seconds=self._seconds(spec.kind, calls, figures_in[1] + figures_out[1]),
            calibrated=tokens.calibrated,
        )

    def _seconds(self, kind: Kind, calls: float, tokens: int) -> float | None:
        provider = self.config.provider
        if in_process(kind, self.config):
            return None
        rates = ((provider.rpm, calls), (provider.tpm, tokens))
        times = [60 * amount / rate for rate, amount in rates if rate is not None]
        return max(times) if times else None


@dataclass(frozen=True, slots=True)
class _TextSize:
    usual: int
    most: int


PROFILE = _TextSize(190, 1240)
"""Bytes of a profile's text: seven names of fields and about twelve values of eight letters; at
most nineteen of sixty."""
ATTRIBUTE = _TextSize(14, 60)
"""Bytes of an attribute's text: a person's name, shorter for countries and languages."""
DISTINCT_SHARE = 0.3
"""Distinct texts among attributes: most items have a director of their own or nearly so, while
countries and languages repeat."""


def _add(count: _Count, tokens: Tokens, body: dict[str, Any], factor: float) -> None:
    bound_in, bound_out = bound_input(body), bound_output(body) or 0
    count.to_pay += factor
    count.tokens_in += factor * tokens.input(body)
    count.tokens_out += factor * min(tokens.output, bound_out)
    count.bound_in += factor * bound_in
    count.bound_out += factor * bound_out


def _whole(low: float, expected: float, most: float) -> tuple[int, int, int]:
    return round(low), round(expected), round(most)


def _cost(
    price: Price, tokens_in: tuple[int, int, int], tokens_out: tuple[int, int, int]
) -> tuple[int, int, int]:
    low, expected = (tokens_in[i] * price.input + tokens_out[i] * price.output for i in (0, 1))
    return low, expected, bound_cost(price, tokens_in[2], tokens_out[2])


def _sampled(dataset: InteractionDataset, sample: int | None) -> tuple[InteractionDataset, float]:
    """Return the data set with the history of `sample` users only, and what one stands for."""
    degrees = np.diff(dataset.train.indptr)
    active = np.flatnonzero(degrees)
    if sample is None or sample >= len(active):
        return dataset, 1.0
    chosen = np.zeros(dataset.n_users, dtype=bool)
    chosen[np.random.default_rng(0).choice(active, size=sample, replace=False)] = True
    kept = dataset.train.multiply(chosen[:, None]).tocsr()
    kept.eliminate_zeros()
    splits = {**dataset.splits, "train": kept.astype(bool)}
    return dataclasses.replace(dataset, splits=splits), len(active) / sample


def _true_skips(dataset: InteractionDataset, draws: int, found: Counter[str]) -> Counter[str]:
    cold = int((np.diff(dataset.train.indptr) == 0).sum()) * draws
    return (
        Counter({**found, "no_history": cold})
        if cold
        else Counter({why: n for why, n in found.items() if why != "no_history"})
    )
