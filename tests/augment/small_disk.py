"""A small disk of its own (tmpfs) that a test fills and frees."""

from __future__ import annotations

import contextlib
import os
import subprocess


class SmallDisk:
    """A mounted tmpfs.

    Args:
        folder: where to mount it.
        mib: its size.

    Raises:
        OSError: this machine does not allow it.
    """

    def __init__(self, folder, mib=48):
        folder.mkdir()
        self.folder, self._filler = folder, folder / "filler"
        options = f"size={mib}m,mode=0700"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True
        )
        if done.returncode:
            raise OSError(done.stderr.decode().strip() or "mount failed")

    def fill(self, leave=0):
        """Take all space but so many bytes."""
        free = os.statvfs(self.folder)
        with self._filler.open("ab") as file, contextlib.suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, max(1, free.f_bavail * free.f_bsize - leave))
        if leave:
            return
        with self._filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    def free(self):
        """Give it back."""
        self._filler.unlink()

    def read_only(self):
        """Allow no more writing."""
        subprocess.run(["mount", "-o", "remount,ro", str(self.folder)], check=True)

    def unmount(self):
        """Take the disk away."""
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)
