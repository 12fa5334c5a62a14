"""Resident memory of this process; the standard library alone, for RecBole's environment too."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def resident_mib(key: str) -> float:
    """Return resident memory now (VmRSS) or at its peak (VmHWM); 0 where Linux does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    found = [int(line.split()[1]) / 1024 for line in lines if line.startswith(key)]
    return found[0] if found else 0.0


def peak_gib() -> float:
    """Return the highest resident memory of this process so far, in GiB."""
    # Not `ru_maxrss`, which a process inherits from the one that started it.
    mib = resident_mib("VmHWM")
    if mib:
        return mib / 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
