"""Lets another process decide when each epoch runs, and tells it what the epoch cost.

Standard library only: the worker in RecBole's environment imports it too.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import IO


class Pace:
    """Waits for a line before each epoch, and writes a line of JSON after it.

    Args:
        orders: where lines come from; its end stops the process.
        reports: where lines go.
        peak_gib: returns the peak of this process's memory.
    """

    def __init__(self, orders: IO[str], reports: IO[str], peak_gib: Callable[[], float]) -> None:
        self.orders, self.reports, self.peak_gib = orders, reports, peak_gib

    def wait(self) -> None:
        """Wait for the order to begin, and start the clocks."""
        if not self.orders.readline():
            sys.exit(0)
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def done(self, score: float) -> None:
        """Report the epoch that ends here, then wait for the next order.

        Args:
            score: validation Recall@20 after the epoch.
        """
        report = {
            "cpu_seconds": time.process_time() - self.cpu,
            "wall_seconds": time.perf_counter() - self.wall,
            "recall@20": score,
            "peak_mib": 1024 * self.peak_gib(),
        }
        print(json.dumps(report), file=self.reports, flush=True)
        self.wait()
