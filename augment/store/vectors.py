"""Embeddings by request key, in a file of their own with larger pages.

They are committed before the transaction that says they are there. A crash between leaves
vectors without a result; opening the store adopts them, so they are not paid twice.
"""

from __future__ import annotations

import sqlite3
import zlib
from typing import TYPE_CHECKING

import numpy as np

from llmrec_pl.errors import AugmentationError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

FILE = "vectors.sqlite"


class VectorFile:
    """float32 vectors by 32-byte key.

    Args:
        folder: the store's folder.
        readonly: open without the right to write.
    """

    def __init__(self, folder: Path, *, readonly: bool = False) -> None:
        path = folder / FILE
        if readonly:
            self._db = sqlite3.connect(
                f"file:{path}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
            )
            return
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA page_size = 32768")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS v(key BLOB PRIMARY KEY, dim INTEGER NOT NULL, "
            "f32 BLOB NOT NULL, crc INTEGER NOT NULL) STRICT"
        )

    def put(self, key: bytes, vector: NDArray[np.float32]) -> None:
        """Add a vector; `commit` makes it durable."""
        if not self._db.in_transaction:
            self._db.execute("BEGIN IMMEDIATE")
        blob = np.ascontiguousarray(vector, dtype="<f4").tobytes()
        self._db.execute(
            "INSERT OR REPLACE INTO v VALUES (?, ?, ?, ?)",
            (key, len(vector), blob, zlib.crc32(blob)),
        )

    def commit(self) -> None:
        """Make added vectors durable."""
        if self._db.in_transaction:
            self._db.execute("COMMIT")

    def get(self, key: bytes) -> NDArray[np.float32] | None:
        """Return a vector, None if there is none.

        Raises:
            AugmentationError: the stored bytes are damaged.
        """
        row = self._db.execute("SELECT dim, f32, crc FROM v WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        dim, blob, crc = row
        if zlib.crc32(blob) != crc or len(blob) != 4 * dim:
            raise AugmentationError(
                f"the vector of request {key.hex()[:12]}… is damaged in `{FILE}`; run "
                "`python -m augment doctor` and restore the store from a copy."
            )
        return np.frombuffer(blob, dtype="<f4")

    def known(self, keys: Iterable[bytes]) -> set[bytes]:
        """Return those keys that have a vector."""
        find = "SELECT 1 FROM v WHERE key = ?"
        return {key for key in keys if self._db.execute(find, (key,)).fetchone()}

    def close(self) -> None:
        """Close the file."""
        self._db.close()
