"""One process at a time works on a store; the lock dies with the process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from pathlib import Path

from augment.errors import LockedStop


def boot_id() -> str:
    """Return an id of this boot of the machine, "" where the system has none."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


class StoreLock:
    """An exclusive `flock` on ``<store>/lock``; its text is for people only.

    Args:
        folder: the store's folder.

    Raises:
        LockedStop: another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "lock"
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._handle, 200).decode(errors="replace").strip()
            os.close(self._handle)
            raise LockedStop(
                f"store {str(folder)!r} is in use by {holder or 'another process'}; wait for it, "
                "or look on with `python -m augment status`."
            ) from error
        os.ftruncate(self._handle, 0)
        text = f"process {os.getpid()} on {socket.gethostname()}, boot {boot_id()}\n"
        os.pwrite(self._handle, text.encode(), 0)

    def release(self) -> None:
        """Let others in."""
        os.close(self._handle)
