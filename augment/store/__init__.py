"""The journal of paid replies: one folder, one writer, nothing lost.

``main.sqlite`` (WAL, FULL) holds plan, attempts, raw replies, results and the ledger in one
transaction each; ``vectors.sqlite`` holds embeddings; ``spool.*.bin`` keep bodies between their
arrival and their commit. Readers open with `mode=ro` and never checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

from augment.errors import StoreFullStop
from augment.store import migrate
from augment.store.changes import (
    ChildRow,
    PlanRow,
    RequestChange,
    Settlement,
    add_spec,
    anomaly,
    pack,
    pack_body,
    pack_text,
    plan,
    price_id,
    reserve,
    sent_json,
    settle,
    take_over,
)
from augment.store.lock import StoreLock
from augment.store.place import network_filesystem
from augment.store.spool import SIZE, Spool
from augment.store.states import AttemptState, State
from augment.store.vectors import VectorFile
from augment.store.writer import Writer
from llmrec_pl.errors import AugmentationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from types import TracebackType

__all__ = [
    "AttemptState",
    "ChildRow",
    "PlanRow",
    "RequestChange",
    "Settlement",
    "State",
    "Store",
    "add_spec",
    "anomaly",
    "open_readonly",
    "pack",
    "pack_body",
    "pack_text",
    "plan",
    "price_id",
    "reserve",
    "sent_json",
    "settle",
    "take_over",
]

MAIN = "main.sqlite"
T = TypeVar("T")


class Store:
    """A store opened for work; a context manager.

    Args:
        folder: the store's folder.
        create: make it if it is not there.
        network_ok: work on a network file system, whose locks and syncs may not hold.
        max_page_count: most 8 KiB pages of the main file; for tests of a full disk.
        spool_size: bytes set aside for each of two spool files.

    Raises:
        AugmentationError: no store there, newer than this program, or on a network file system.
        LockedStop: another process works on it.
        StoreFullStop: it cannot be written.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        create: bool = False,
        network_ok: bool = False,
        max_page_count: int | None = None,
        spool_size: int = SIZE,
    ) -> None:
        self.folder = Path(folder)
        fresh = not (self.folder / MAIN).is_file()
        if fresh and not create:
            raise AugmentationError(_no_store(self.folder))
        with contextlib.ExitStack() as undo:
            try:
                self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                kind = network_filesystem(self.folder)
                if kind and not network_ok:
                    raise AugmentationError(
                        f"store {str(self.folder)!r} lies on a {kind!r} file system, whose locks "
                        "and syncs may not hold; choose a local disk, or say `--i-know`."
                    )
                lock = StoreLock(self.folder)
                undo.callback(lock.release)
                for name in (MAIN, "vectors.sqlite"):
                    os.close(os.open(self.folder / name, os.O_CREAT | os.O_RDWR, 0o600))
                self.spool = Spool(self.folder, spool_size)
                undo.callback(self.spool.close)
                self.vectors = VectorFile(self.folder)
                undo.callback(self.vectors.close)
                self.writer = Writer(
                    lambda: _connect(self.folder / MAIN, max_page_count), self.vectors.commit
                )
            except (OSError, sqlite3.OperationalError) as error:
                raise StoreFullStop(
                    f"store {str(self.folder)!r} cannot be written: {error}. Make space or give "
                    "permission, and run the same command again."
                ) from error
            self._undo = undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Commit what is queued, checkpoint, release the lock; harmless when repeated."""
        undo, self._undo = self._undo, contextlib.ExitStack()
        with undo:
            if self.writer.alive:
                self.writer.close()

    def put(self, operation: Callable[[sqlite3.Connection], T]) -> Future[T]:
        """Queue a change; the future resolves when it is on disk."""
        return self.writer.put(operation)

    def do(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Make a change and wait until it is on disk."""
        return self.writer.do(operation)

    def settle(self, settlement: Settlement) -> Future[bool]:
        """Write the end of a send, vectors first, and let go of its spooled body."""

        def operation(db: sqlite3.Connection) -> bool:
            for change in settlement.changes:
                if change.vector is not None:
                    self.vectors.put(change.key, change.vector)
            return settle(db, settlement, settlement.t_end)

        future = self.put(operation)
        future.add_done_callback(
            lambda done: None if done.exception() else self.spool.settled(settlement.attempt)
        )
        return future


def open_readonly(folder: Path | str) -> sqlite3.Connection:
    """Open a store to look at, also while another process works on it.

    Raises:
        AugmentationError: there is no store, or it is newer than this program.
    """
    path = Path(folder) / MAIN
    if not path.is_file() or path.stat().st_size == 0:
        raise AugmentationError(_no_store(Path(folder)))
    try:
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
        migrate.check(db, path)
    except sqlite3.OperationalError as error:
        raise AugmentationError(
            f"store {str(folder)!r} cannot be read: {error}; check its permissions, or run "
            "`python -m augment doctor`."
        ) from error
    return db


def _no_store(folder: Path) -> str:
    return (
        f"no store at {str(folder)!r}; `python -m augment run --config FILE` makes one, and a "
        "config names its place under `store`."
    )


def _connect(path: Path, max_page_count: int | None) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA page_size = 8192")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA foreign_keys = ON")
    db.execute("PRAGMA wal_autocheckpoint = 4000")
    db.execute("PRAGMA cache_size = -32000")
    if not db.execute("SELECT 1 FROM sqlite_master").fetchone():
        migrate.create(db)
    migrate.migrate(db, path)
    db.execute("INSERT OR IGNORE INTO meta VALUES ('store_uuid', ?)", (str(uuid.uuid4()),))
    if max_page_count is not None:
        db.execute(f"PRAGMA max_page_count = {int(max_page_count)}")
    return db
