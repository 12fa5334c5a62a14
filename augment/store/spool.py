"""The spool: raw 200 bodies, written before anyone looks at them.

A file of fixed size is allocated when the store opens, so writing a body needs no further disk
space and survives a kill -9 at once. Frames carry the generation of the file, so that reusing it
needs no wiping. Two files take turns; one is reused when all its attempts are settled.
"""

from __future__ import annotations

import os
import struct
import threading
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_HEAD = struct.Struct("<8sI")  # magic, generation
_FRAME = struct.Struct("<4sIQII")  # magic, generation, attempt, length, crc32
_MAGIC, _MARK = b"LRSPOOL1", b"FRAM"
SIZE = 16 * 2**20
"""Bytes of each of the two files; a body that does not fit makes its file longer."""


class Spool:
    """Raw bodies that are not committed yet.

    Args:
        folder: the store's folder.
        size: bytes to allocate for each file.

    Raises:
        OSError: no space or no permission.
    """

    def __init__(self, folder: Path, size: int = SIZE) -> None:
        self._files = [_File(folder / f"spool.{i}.bin", size) for i in (0, 1)]
        self._active = 0
        self._home: dict[int, int] = {}
        # Bodies arrive in the event loop, commits are reported by the writer's thread.
        self._lock = threading.Lock()

    def pending(self) -> Iterator[tuple[int, bytes]]:
        """Yield (attempt, body) of whole frames; a torn one ends its file."""
        for number, file in enumerate(self._files):
            for attempt, body in file.frames():
                self._home[attempt] = number
                file.unsettled.add(attempt)
                yield attempt, body

    def write(self, attempt: int, body: bytes) -> None:
        """Keep a body; returns when the kernel has it.

        Raises:
            OSError: it does not fit and the disk is full.
        """
        with self._lock:
            if not self._files[self._active].fits(len(body)):
                self._turn(len(body))
            self._files[self._active].append(attempt, body)
            self._home[attempt] = self._active

    def settled(self, attempt: int) -> None:
        """Forget a body that is committed; a file with nothing left is reused."""
        with self._lock:
            number = self._home.pop(attempt, None)
            if number is None:
                return
            file = self._files[number]
            file.unsettled.discard(attempt)
            if not file.unsettled:
                file.reset()

    def _turn(self, length: int) -> None:
        for number, file in enumerate(self._files):
            if not file.unsettled:
                file.reset()
                self._active = number
                return
        fitting = [n for n, file in enumerate(self._files) if file.fits(length)]
        self._active = fitting[0] if fitting else self._active

    def close(self) -> None:
        """Close both files."""
        for file in self._files:
            os.close(file.handle)


class _File:
    def __init__(self, path: Path, size: int) -> None:
        self.handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self.unsettled: set[int] = set()
        if os.fstat(self.handle).st_size < size:
            os.posix_fallocate(self.handle, 0, size)
        head = os.pread(self.handle, _HEAD.size, 0)
        magic, self.generation = _HEAD.unpack(head)
        if magic != _MAGIC:
            self.generation = 0
            self._write_head()
        self.end = _HEAD.size
        self.size = max(size, os.fstat(self.handle).st_size)

    def _write_head(self) -> None:
        os.pwrite(self.handle, _HEAD.pack(_MAGIC, self.generation), 0)

    def fits(self, length: int) -> bool:
        return self.end + _FRAME.size + length <= self.size

    def frames(self) -> Iterator[tuple[int, bytes]]:
        while True:
            raw = os.pread(self.handle, _FRAME.size, self.end)
            if len(raw) < _FRAME.size:
                return
            mark, generation, attempt, length, crc = _FRAME.unpack(raw)
            if mark != _MARK or generation != self.generation:
                return
            body = os.pread(self.handle, length, self.end + _FRAME.size)
            if len(body) < length or _crc(generation, attempt, body) != crc:
                return
            self.end += _FRAME.size + length
            yield attempt, body

    def append(self, attempt: int, body: bytes) -> None:
        crc = _crc(self.generation, attempt, body)
        head = _FRAME.pack(_MARK, self.generation, attempt, len(body), crc)
        frame = head + body
        written = os.pwrite(self.handle, frame, self.end)
        while written < len(frame):
            written += os.pwrite(self.handle, frame[written:], self.end + written)
        self.end += len(frame)
        self.unsettled.add(attempt)

    def reset(self) -> None:
        if self.end == _HEAD.size:
            return
        self.generation = (self.generation + 1) % 2**32
        self._write_head()
        self.end = _HEAD.size


def _crc(generation: int, attempt: int, body: bytes) -> int:
    """Cover the head too: of an empty body alone it would be zero, like a wiped frame."""
    return zlib.crc32(body, zlib.crc32(struct.pack("<IQI", generation, attempt, len(body))))
