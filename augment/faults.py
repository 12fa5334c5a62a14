"""Named points at which a test may kill the process: ``AUGMENT_FAULT=point:nth``.

Promises about a crash can only be shown by crashing for real, at a chosen place. Without the
variable a point costs one comparison.
"""

from __future__ import annotations

import os
import signal

_POINT, _, _NTH = os.environ.get("AUGMENT_FAULT", "").partition(":")
_passed = 0


def point(name: str) -> None:
    """Die by SIGKILL if this is the chosen point, passed for the nth time."""
    if name != _POINT:
        return
    global _passed  # one counter for the one chosen point
    _passed += 1
    if _passed >= int(_NTH or 1):
        os.kill(os.getpid(), signal.SIGKILL)
