"""The only connection that writes: a thread that commits what has queued up as one group.

While one fsync runs the next group collects, so the size of a group follows the load by itself.
"""

from __future__ import annotations

import contextlib
import queue
import sqlite3
import threading
from concurrent.futures import Future, InvalidStateError
from typing import TYPE_CHECKING, Any, TypeVar

from augment.errors import StoreFullStop
from augment.faults import point

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
_MOST = 512
_FULL = ("full", "readonly", "disk I/O", "unable to open", "quota")


class Writer:
    """Applies operations in order, each whole or not at all, and says when they are on disk.

    Args:
        connect: opens the connection; called in the writer's own thread.
        before_commit: called before the main commit of each group (vectors go first).
    """

    def __init__(
        self,
        connect: Callable[[], sqlite3.Connection],
        before_commit: Callable[[], None] = lambda: None,
    ) -> None:
        self._queue: queue.SimpleQueue[tuple[Callable[..., Any], Future[Any]] | None] = (
            queue.SimpleQueue()
        )
        self._connect, self._before_commit = connect, before_commit
        self.failure: BaseException | None = None
        self._closed = False
        ready: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(ready,), name="store-writer", daemon=True
        )
        self._thread.start()
        ready.result()

    @property
    def alive(self) -> bool:
        """Whether it still takes operations."""
        return self._thread.is_alive()

    def put(self, operation: Callable[[sqlite3.Connection], T]) -> Future[T]:
        """Queue an operation; its future resolves when it is committed.

        The future raises what the operation raised (which is then undone), or `StoreFullStop`
        once the store cannot be written any more. Cancelling it does not undo the operation.

        Raises:
            ValueError: it is closed.
        """
        if self._closed:
            raise ValueError("the store is closed; open it again for more changes.")
        future: Future[T] = Future()
        self._queue.put((operation, future))
        return future

    def do(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Apply an operation and wait until it is committed."""
        return self.put(operation).result()

    def close(self) -> None:
        """Commit what is queued, checkpoint and end the thread."""
        self._closed = True
        self._queue.put(None)
        self._thread.join()

    def _run(self, ready: Future[None]) -> None:
        try:
            db = self._connect()
        except BaseException as error:  # handed to whoever waits
            ready.set_exception(error)
            return
        ready.set_result(None)
        more = True
        while more:
            group: list[tuple[Callable[..., Any], Future[Any]]] = []
            item = self._queue.get()
            while item is not None:
                group.append(item)
                if len(group) >= _MOST or self._queue.empty():
                    break
                item = self._queue.get()
            more = item is not None
            if group:
                self._commit(db, group)
        if self.failure is None:
            with contextlib.suppress(sqlite3.Error):  # no room: the log stays, and is read again
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.close()

    def _commit(
        self, db: sqlite3.Connection, group: list[tuple[Callable[..., Any], Future[Any]]]
    ) -> None:
        outcomes: list[tuple[Future[Any], Any, BaseException | None]] = []
        try:
            if self.failure is not None:
                raise self.failure  # one path for all that cannot be written
            db.execute("BEGIN IMMEDIATE")
            for operation, future in group:
                outcomes.append((future, *_apply(db, operation)))
            self._before_commit()
            point("commit")
            db.execute("COMMIT")
        except (sqlite3.Error, OSError, StoreFullStop) as error:
            self._fail(db, error)
            outcomes = [(future, None, self.failure or error) for _, future in group]
        for future, value, problem in outcomes:
            with contextlib.suppress(InvalidStateError):  # nobody waits for it any more
                if problem is None:
                    future.set_result(value)
                else:
                    future.set_exception(problem)

    def _fail(self, db: sqlite3.Connection, error: BaseException) -> None:
        if db.in_transaction:
            with contextlib.suppress(sqlite3.Error):  # the disk is at fault; that is reported
                db.execute("ROLLBACK")
        if self.failure is None:
            self.failure = (
                error
                if isinstance(error, StoreFullStop)
                else StoreFullStop(
                    f"the store cannot be written: {error}. Nothing was sent since. Make space "
                    "(or give permission) and run the same command again; what was answered is "
                    "kept and not asked again."
                )
            )


def _apply(
    db: sqlite3.Connection, operation: Callable[[sqlite3.Connection], Any]
) -> tuple[Any, BaseException | None]:
    db.execute("SAVEPOINT one")
    try:
        value = operation(db)
    except sqlite3.Error as error:
        if any(word in str(error) for word in _FULL):
            raise
        db.execute("ROLLBACK TO one")
        db.execute("RELEASE one")
        return None, error
    except Exception as error:  # it belongs to whoever waits for the operation
        db.execute("ROLLBACK TO one")
        db.execute("RELEASE one")
        return None, error
    db.execute("RELEASE one")
    return value, None
