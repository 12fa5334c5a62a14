"""Measures CPU time and peak memory, the latter in a process of its own.

Seconds are CPU seconds of one thread: they do not count who else uses the machine, though a
shared cache and memory still make them longer. Compare within one run.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "POLARS_MAX_THREADS": "1",
}


def apart(module: str, *arguments: str) -> dict[str, Any]:
    """Run a module in a process of its own, on one thread.

    Args:
        module: as behind ``python -m``; the last line that it prints is JSON.
        arguments: its command line.

    Raises:
        SystemExit: it failed; what it wrote to standard error has been shown.
    """
    run = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, **ONE_THREAD},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if run.returncode:
        raise SystemExit(f"`python -m {module} {' '.join(arguments)}` failed, see above.")
    said: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return said


def cpu_seconds(work: Callable[[], object], repeats: int = 1) -> float:
    """Return the CPU seconds of a call, of all threads; the least of several calls."""
    spent = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        spent.append(time.process_time() - start)
    return min(spent)


def machine() -> dict[str, Any]:
    """Return what a reader should know of where figures come from."""
    return {
        "cpu": platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "python": platform.python_version(),
        "threads": 1,
    }


def console() -> Console:
    """Return a console that is wide enough for tables also where there is no terminal."""
    return Console(width=None if Console().is_terminal else 120)
