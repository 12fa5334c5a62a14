"""Progress of a run: a live line a task on a terminal, one JSON line every half minute elsewhere."""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from augment.money import format_usd
from augment.runner import Watcher

if TYPE_CHECKING:
    from types import TracebackType

    from augment.limits import Limits
    from augment.meter import Meter
    from augment.recover import Recovered
    from augment.specs import Kind, TaskSpec

PLAIN_INTERVAL = 30.0
_WIDTH = 24


class RunProgress(Watcher):
    """Shows a run; a context manager.

    Args:
        console: where to write; standard error by default.
        interval: seconds between lines where there is no terminal.
    """

    def __init__(self, console: Console | None = None, interval: float = PLAIN_INTERVAL) -> None:
        self.console = console or Console(stderr=True)
        self._interval = interval
        self._live: Live | None = None
        self._task: tuple[Kind, TaskSpec, int, Meter, Limits] | None = None
        self._begin = 0.0
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Live(
                console=self.console, refresh_per_second=4, transient=True, get_renderable=self.line
            )
            self._live.start()
        else:
            threading.Thread(target=self._say, name="progress", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._live is not None:
            self._live.stop()

    def _say(self) -> None:
        while not self._stop.wait(self._interval):
            if self._task is not None:
                print(json.dumps(self.figures()), file=sys.stderr, flush=True)

    def recovered(self, found: Recovered) -> None:
        """Say what the last process left."""
        self.console.print(f"last time: {found}", highlight=False)

    def planning(self, kind: Kind, n: int) -> None:
        """Say how many answers are planned so far."""
        if n % 50_000 == 0:
            self.console.print(f"{kind}: {n:,} planned", highlight=False)

    def task(self, kind: Kind, spec: TaskSpec, to_send: int, meter: Meter, limits: Limits) -> None:
        """Begin a task."""
        self._begin = time.monotonic()
        self._task = (kind, spec, to_send, meter, limits)

    def task_done(self, kind: Kind) -> None:
        """End a task with one plain line."""
        if self._task is not None:
            f = self.figures()
            self.console.print(
                f"{kind}: {f['done']:,} of {f['requests']:,} settled in {f['seconds']:.0f} s, "
                f"{f['tokens_in']:,} tokens in, {f['tokens_out']:,} out, {f['spent']}",
                highlight=False,
            )
        self._task = None

    def figures(self) -> dict[str, float | int | str]:
        """Return what is shown, as plain values."""
        assert self._task is not None  # asked for while a task runs
        kind, _, to_send, meter, limits = self._task
        seconds = max(1e-9, time.monotonic() - self._begin)
        done = meter.finished
        share = done / to_send if to_send else 1.0
        projected = round(meter.spent_pusd / share) if share else 0
        left = seconds / share - seconds if share else 0.0
        return {
            "task": kind,
            "done": done,
            "requests": to_send,
            "tokens_in": meter.tokens_in,
            "tokens_out": meter.tokens_out,
            "spent": format_usd(meter.spent_pusd),
            "projected": format_usd(projected),
            "per_second": round(done / seconds, 2),
            "seconds": round(seconds, 1),
            "left_s": round(left),
            "waiting": limits.waiting_for(),
        }

    def line(self) -> Text:
        """Return the live line."""
        if self._task is None:
            return Text("planning ...")
        f = self.figures()
        done, of = int(f["done"]), max(1, int(f["requests"]))
        bar = ("█" * (_WIDTH * min(done, of) // of)).ljust(_WIDTH, "░")
        left = int(f["left_s"])
        text = (
            f"{f['task']:<10} {bar} {done:,}/{of:,}  {f['per_second']}/s  "
            f"{f['tokens_in']:,}+{f['tokens_out']:,} tokens  {f['spent']} of {f['projected']}  "
            f"{left // 60}:{left % 60:02d} left"
        )
        return Text(f"{text}  waiting: {f['waiting']}" if f["waiting"] else text)
