"""Progress of a run: a live line a task on a terminal, a JSON line every half minute elsewhere."""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING, Any, Self

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
"""Seconds between two lines where the output is no terminal."""
_WIDTH = 24
_PLANNING_STEP = 50_000


class RunProgress(Watcher):
    """Shows a run; a context manager.

    Args:
        console: where to write; standard error by default, so that output can be piped.
        interval: seconds between lines where there is no terminal.
    """

    def __init__(self, console: Console | None = None, interval: float = PLAIN_INTERVAL) -> None:
        self.console = console or Console(stderr=True)
        self._interval = interval
        self._live: Live | None = None
        self._task: tuple[Kind, int, Meter, Limits] | None = None
        self._finished: list[Text] = []
        self._begin = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="progress", daemon=True)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=4, get_renderable=self.lines)
            self._live.start()
        else:
            self._thread.start()
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
        else:
            self._thread.join()

    def recovered(self, found: Recovered) -> None:
        """Say what the last process left."""
        self._say({"event": "recovered", "found": str(found)}, f"last time: {found}")

    def planning(self, kind: Kind, n: int) -> None:
        """Say how many answers are planned so far."""
        if n % _PLANNING_STEP == 0:
            self._say({"event": "planning", "task": kind, "planned": n}, f"{kind}: {n:,} planned")

    def task(self, kind: Kind, spec: TaskSpec, to_send: int, meter: Meter, limits: Limits) -> None:
        """Begin a task."""
        self._begin = time.monotonic()
        self._task = (kind, to_send, meter, limits)

    def task_done(self, kind: Kind) -> None:
        """Keep the task's last line."""
        figures, self._task = self.figures(), None
        if figures is not None:
            self._finished.append(_line(figures))
            if self._live is None:
                self._print({"event": "task_done", **figures})

    def stopping(self, seconds: float) -> None:
        """Say that a stop was asked for."""
        text = f"stopping: calls in flight have {seconds:g} s to end; Ctrl-C again drops them"
        self._say({"event": "stopping", "seconds": seconds}, text)

    def figures(self) -> dict[str, Any] | None:
        """Return what is shown, as plain values; None between tasks."""
        if self._task is None:
            return None
        kind, to_send, meter, limits = self._task
        seconds = max(1e-9, time.monotonic() - self._begin)
        done = meter.finished
        share = min(1.0, done / to_send) if to_send else 1.0
        return {
            "task": kind,
            "done": done,
            "requests": to_send,
            "tokens_in": meter.tokens_in,
            "tokens_out": meter.tokens_out,
            "spent": format_usd(meter.spent_pusd),
            "projected": format_usd(round(meter.spent_pusd / share)) if share else None,
            "per_second": round(done / seconds, 2),
            "seconds": round(seconds, 1),
            "left_s": round(seconds / share - seconds) if share else None,
            "waiting_for": limits.waiting_for(),
        }

    def lines(self) -> Text:
        """Return the live display: a line for each task so far."""
        figures = self.figures()
        now = Text("planning ...") if figures is None else _line(figures)
        return Text("\n").join([*self._finished, *([] if self._stop.is_set() else [now])])

    def _repeat(self) -> None:
        while not self._stop.wait(self._interval):
            figures = self.figures()
            if figures is not None:
                self._print({"event": "progress", **figures})

    def _say(self, event: dict[str, Any], text: str) -> None:
        if self._live is None:
            self._print(event)
        else:
            self.console.print(text, highlight=False, markup=False)

    def _print(self, event: dict[str, Any]) -> None:
        self.console.file.write(json.dumps(event) + "\n")
        self.console.file.flush()


def _line(figures: dict[str, Any]) -> Text:
    done, of = figures["done"], max(1, figures["requests"])
    bar = ("█" * (_WIDTH * min(done, of) // of)).ljust(_WIDTH, "░")
    parts = [
        f"{figures['task']:<10} {bar} {done:,}/{figures['requests']:,}",
        f"{figures['per_second']}/s",
        f"{figures['tokens_in']:,}+{figures['tokens_out']:,} tokens",
        figures["spent"],
    ]
    if figures["projected"] is not None and done < of:
        left = figures["left_s"]
        parts[-1] += f" of {figures['projected']}"
        parts.append(f"{left // 60}:{left % 60:02d} left")
    if figures["waiting_for"]:
        parts.append(f"waiting: {figures['waiting_for']}")
    return Text("  ".join(parts))
