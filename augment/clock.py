"""Time as a dependency, so that tests need not wait for it."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Monotonic seconds for waits, wall-clock milliseconds for records."""

    def monotonic(self) -> float:
        """Return seconds that never jump."""
        ...

    def wall_ms(self) -> int:
        """Return milliseconds since 1970; may jump."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class SystemClock:
    """The machine's clock."""

    def monotonic(self) -> float:
        """Return seconds that never jump."""
        return time.monotonic()

    def wall_ms(self) -> int:
        """Return milliseconds since 1970; may jump."""
        return time.time_ns() // 1_000_000

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)
