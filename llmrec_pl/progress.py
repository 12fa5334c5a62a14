"""Progress of long work: a rich bar on a terminal, one plain line every half minute elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from types import TracebackType

PLAIN_INTERVAL = 30.0
"""Seconds between two plain lines where the output is no terminal."""


class ProgressReport:
    """Context manager that shows how far a task of known or unknown length is.

    Args:
        description: what is being done, in a few words.
        total: number of units, None if unknown.
        unit: name of the unit in plain lines.
        console: where to write; standard error by default, so that output can be piped.
    """

    def __init__(
        self,
        description: str,
        total: int | None,
        unit: str = "items",
        console: Console | None = None,
    ) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.console = console or Console(stderr=True)
        self.done = 0
        self._last = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.description, total=self.total)
        return self

    def advance(self, n: int = 1) -> None:
        """Count `n` further units as done."""
        self.done += n
        if self._bar is not None:
            self._bar.advance(self._task, n)
        elif time.monotonic() - self._last >= PLAIN_INTERVAL:
            self._last = time.monotonic()
            of = "" if self.total is None else f" of {self.total}"
            print(f"{self.description}: {self.done}{of} {self.unit}", file=sys.stderr, flush=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
