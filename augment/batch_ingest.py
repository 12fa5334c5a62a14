"""Takes in answer files, from whomever they come: line by line, again and again without harm.

Each 200 is judged and kept like a reply of a server. Which line answers which request is told by
`custom_id` alone, never by its place.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter, deque
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from augment.batch_files import AnswerLine, BadLine, read_answers
from augment.classify import Classified, Outcome
from augment.faults import point
from augment.judge import Policy, judge_failure, judge_reply
from augment.recover import stored_price
from augment.store import AttemptState, State, anomaly, open_readonly
from augment.store.claims import read_spec, requests_of
from augment.store.parts import (
    Part,
    PartState,
    Sent,
    count_lines,
    lines_named,
    move,
    open_lines,
    read_part,
    take_back,
)
from llmrec_pl.errors import AugmentationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from pathlib import Path
    from typing import Self

    from augment.clock import Clock
    from augment.money import Price
    from augment.specs import TaskSpec
    from augment.store import RequestChange, Settlement, Store

_NOT_REMOTE = (PartState.BUILT, PartState.HANDED, PartState.UPLOADING, PartState.UPLOADED)
_PIPELINE = 1_024
_SHOWN = 10
_NEITHER = Classified(Outcome.not_sent, "no", None, "not_answered", "no line answers it")
_LOST = Classified(
    Outcome.ambiguous, "unknown", None, "answer_lost", "it was perhaps answered, the line is lost"
)


@dataclass
class Ingested:
    """What was found in answer files.

    Attributes:
        lines: read, blank ones left out.
        states: requests by the state and the code they came to.
        again: lines taken in before, or not waited for any more.
        duplicates: further lines about a request of the same files.
        unknown: lines about requests that no part of the store holds.
        bad: lines that say nothing usable, the first few.
        n_bad: number of those.
        n_answered: requests with a 200, taken in now or before.
        parts: those that lines were about.
        examples: the first few names, by the kind of anomaly.
    """

    lines: int = 0
    states: Counter[tuple[State, str]] = field(default_factory=Counter)
    again: int = 0
    duplicates: int = 0
    unknown: int = 0
    bad: list[BadLine] = field(default_factory=list)
    n_bad: int = 0
    n_answered: int = 0
    parts: dict[str, None] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def settled(self) -> int:
        """Requests that these files brought forward."""
        return sum(self.states.values())

    def odd_lines(self, kind: str) -> int:
        """Return how many lines were odd in one way."""
        counts = {"batch_unknown_id": self.unknown, "batch_duplicate_id": self.duplicates}
        return counts.get(kind, self.n_bad)

    def reject(self, line: BadLine) -> None:
        """Count a line that cannot be used."""
        self.n_bad += 1
        if len(self.bad) < _SHOWN:
            self.bad.append(line)
        self.odd("batch_bad_line", f"line {line.number}")

    def odd(self, kind: str, name: str) -> None:
        """Remember an example."""
        names = self.examples.setdefault(kind, [])
        if len(names) < _SHOWN:
            names.append(name)


class Ingest:
    """Takes in answer files; a context manager.

    Memory holds one bit for each send of the store and the settlements on their way to the disk.

    Args:
        store: opened for work.
        clock: for records.
        part: the only part whose requests are expected; None for any.
        policy: how often to ask again.
    """

    def __init__(
        self, store: Store, *, clock: Clock, part: str | None = None, policy: Policy | None = None
    ) -> None:
        self.store, self.clock, self.part = store, clock, part
        self.policy, self.found = policy or Policy(), Ingested()
        self._db = open_readonly(store.folder)
        self._on_the_way: deque[tuple[Future[bool], RequestChange, int]] = deque()
        self._seen = bytearray()
        self._spec: Callable[[int], TaskSpec] = lru_cache(64)(lambda i: read_spec(self._db, i))
        self._price: Callable[[int | None], Price | None] = lru_cache(64)(
            lambda row: stored_price(self._db, row)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        with contextlib.closing(self._db):
            if error is None:
                self._drain(0)

    def file(self, path: Path, progress: Callable[[int], None] = lambda _: None) -> None:
        """Take in one file.

        Raises:
            AugmentStop: the budget does not cover a late answer, or the disk is full; what was
                taken in before is kept.
            OSError: it cannot be read.
        """
        for line in read_answers(path):
            self.found.lines += 1
            progress(1)
            if isinstance(line, BadLine):
                self.found.reject(line)
            else:
                self._take(line)
        self._drain(0)
        self._note(path.name)
        self._close_handed()

    def give_up(self, part: str, *, lost: bool = False) -> int:
        """Settle what no line answered, so that it can be asked anew; returns how many.

        Args:
            part: the part.
            lost: it may have been answered and charged: what was reserved stays reserved.
        """
        self._drain(0)
        after, n = 0, 0
        while rows := open_lines(self._db, part, after, _PIPELINE):
            for sent in rows:
                items = requests_of(self._db, sent.attempt)
                settlement = judge_failure(
                    items,
                    _LOST if lost else _NEITHER,
                    attempt=sent.attempt,
                    policy=self.policy,
                    now=self.clock.wall_ms(),
                )
                self._settle(settlement)
            after, n = rows[-1].attempt, n + len(rows)
        self._drain(0)
        return n

    # One line ------------------------------------------------------------------------------

    def _take(self, line: AnswerLine) -> None:
        sent = self._sent(line)
        if sent is None:
            return
        self.found.parts[sent.part] = None
        items = requests_of(self._db, sent.attempt)
        spec, now = self._spec(items[0].spec), self.clock.wall_ms()
        if line.raw is not None:
            settlement = judge_reply(
                spec,
                items,
                line.raw,
                attempt=sent.attempt,
                price=self._price(sent.price),
                reserved=sent.reserved_pusd,
                policy=self.policy,
                now=now,
            )
        else:
            assert line.failure is not None  # a line holds the one or the other
            settlement = judge_failure(
                items,
                line.failure,
                attempt=sent.attempt,
                policy=self.policy,
                now=now,
                embeddings=spec.kind == "embed",
            )
        self._settle(settlement, line.number)

    def _sent(self, line: AnswerLine) -> Sent | None:
        """Return the attempt that a line settles; None, and counted, if there is none."""
        custom_id = line.custom_id
        found = lines_named(self._db, custom_id, self.part)
        if not found:
            self.found.unknown += 1
            self.found.odd("batch_unknown_id", custom_id)
            return None
        sent = found[0]
        if self._was_seen(sent.attempt):
            self.found.duplicates += 1
            self.found.odd("batch_duplicate_id", custom_id)
            return None if line.raw is None else self._after_failure(custom_id)
        self.found.n_answered += line.raw is not None
        if sent.state in (AttemptState.INTENT, AttemptState.UNKNOWN):
            return sent
        self.found.parts[sent.part] = None
        late = None if line.raw is None else self._late(sent, custom_id)
        self.found.again += late is None
        return late

    def _after_failure(self, custom_id: str) -> Sent | None:
        """Take a 200 although a line before it said that there was none."""
        self._drain(0)
        (sent, *_) = lines_named(self._db, custom_id, self.part)
        late = self._late(sent, custom_id)
        self.found.n_answered += late is not None
        return late

    def _late(self, sent: Sent, custom_id: str) -> Sent | None:
        """Take a line that was given up back, if its request was not asked elsewhere since."""
        now = self.clock.wall_ms()
        new = self.store.do(lambda db: take_back(db, sent, custom_id, now))
        if new is not None:
            self._was_seen(new.attempt)
        return new

    def _was_seen(self, attempt: int) -> bool:
        """Return whether a line about this attempt came before, and remember it."""
        place, bit = attempt >> 3, 1 << (attempt & 7)
        if place >= len(self._seen):
            self._seen.extend(bytes(max(place + 1 - len(self._seen), len(self._seen))))
        before = bool(self._seen[place] & bit)
        self._seen[place] |= bit
        return before

    # To the disk ---------------------------------------------------------------------------

    def _settle(self, settlement: Settlement, number: int = 0) -> None:
        future = self.store.settle(settlement)
        self._on_the_way.append((future, settlement.changes[0], number))
        point("line_settled")
        self._drain(_PIPELINE)

    def _drain(self, most: int) -> None:
        while len(self._on_the_way) > most:
            future, change, number = self._on_the_way.popleft()
            try:
                future.result()
            except (ValueError, sqlite3.Error) as error:  # of this line alone; the others count
                self.found.reject(BadLine(number, f"it cannot be kept ({error})"))
            else:
                self.found.states[(change.state, change.code)] += 1

    def _note(self, name: str) -> None:
        """Keep what should not be in such a file, a row a kind."""
        now = self.clock.wall_ms()
        for kind, examples in self.found.examples.items():
            text = f"{name}: {self.found.odd_lines(kind)} so far, such as {', '.join(examples)}"
            self.store.do(lambda db, kind=kind, text=text: anomaly(db, now, kind, text))  # type: ignore[misc]
        self.found.examples.clear()

    def _close_handed(self) -> None:
        now = self.clock.wall_ms()
        for part in self.found.parts:
            self.store.do(lambda db, part=part: close_handed(db, part, now))  # type: ignore[misc]


def close_handed(db: sqlite3.Connection, uuid: str, now: int) -> bool:
    """Mark a part that was answered outside the Batch API, if no line of it waits any more."""
    part = read_part(db, uuid)
    waiting = count_lines(db, uuid).get(AttemptState.INTENT, 0)
    if waiting or part.state not in (PartState.BUILT, PartState.HANDED):
        return False
    move(db, uuid, PartState.INGESTED, now)
    return True


def finish_handed(store: Store, ingest: Ingest, uuid: str, *, clock: Clock) -> int:
    """Plan again what nobody answered in a part outside the Batch API; returns how many.

    Raises:
        AugmentationError: the Batch API works on it.
    """
    part = store.do(lambda db: read_part(db, uuid))
    if part.state not in (PartState.BUILT, PartState.HANDED, PartState.INGESTED):
        raise AugmentationError(
            f"part {uuid} is {part.state.value}: its batch may answer yet. `python -m augment "
            "batch poll` takes it in; without `--final`, files for it can be taken in any time."
        )
    n = ingest.give_up(uuid)
    store.do(lambda db: close_handed(db, uuid, clock.wall_ms()))
    return n


def discard(store: Store, part: Part, *, clock: Clock, lost: bool = False) -> int:
    """Give the requests of a part back to the plan; returns how many.

    Args:
        store: opened for work.
        part: built or handed out, without a remote batch.
        clock: for records.
        lost: also one that was submitted, whose answers cannot be had any more: they may have
            been charged, so their reservation stays until `unknown release`.

    Raises:
        AugmentationError: it has a remote batch, and is not said to be lost.
    """
    if part.state in (PartState.INGESTED, PartState.DISCARDED):
        raise AugmentationError(f"part {part.uuid} is {part.state.value} already.")
    local = part.state in _NOT_REMOTE
    if not (local or lost):
        raise AugmentationError(
            f"part {part.uuid} is {part.state.value}: its answers are paid for. `python -m augment "
            "batch poll` takes them in; if they cannot be had any more, say `--lost`."
        )
    with Ingest(store, clock=clock, part=part.uuid) as ingest:
        n = ingest.give_up(part.uuid, lost=not local)
    now = clock.wall_ms()
    store.do(lambda db: move(db, part.uuid, PartState.DISCARDED, now))
    return n
