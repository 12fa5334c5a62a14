"""The replies of a cassette by key, on disk: memory does not grow with the cassette."""

from __future__ import annotations

import base64
import sqlite3
import zlib
from typing import TYPE_CHECKING

from augment.cassette import raw_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from augment.cassette import Cassette

_SCHEMA = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE known(key BLOB PRIMARY KEY, n INTEGER NOT NULL DEFAULT 0,
  used INTEGER NOT NULL DEFAULT 0) STRICT, WITHOUT ROWID;
CREATE TABLE reply(key BLOB NOT NULL, n INTEGER NOT NULL, raw BLOB NOT NULL,
  PRIMARY KEY(key, n)) STRICT, WITHOUT ROWID;
CREATE TABLE vector(key BLOB PRIMARY KEY, f32 BLOB NOT NULL) STRICT, WITHOUT ROWID;
"""


class ReplyIndex:
    """Replies in the order they came, each given out once; vectors as often as asked for.

    Args:
        cassette: what to index.
        folder: for a temporary database.

    Raises:
        AugmentationError: the cassette is damaged.
    """

    def __init__(self, cassette: Cassette, folder: Path) -> None:
        self._db = sqlite3.connect(folder / "replies.sqlite", isolation_level=None)
        self._db.executescript(_SCHEMA)
        self._db.execute("BEGIN")
        for entry in cassette.entries():
            key = bytes.fromhex(entry["key"])
            self._db.execute("INSERT OR IGNORE INTO known(key) VALUES (?)", (key,))
            if "vector" in entry:
                vector = base64.b64decode(entry["vector"])
                self._db.execute("INSERT OR REPLACE INTO vector VALUES (?, ?)", (key, vector))
            elif "none" not in entry and not entry.get("extra"):
                self._db.execute(
                    "INSERT INTO reply SELECT key, n, ? FROM known WHERE key = ?",
                    (zlib.compress(raw_of(entry), 1), key),
                )
                self._db.execute("UPDATE known SET n = n + 1 WHERE key = ?", (key,))
        self._db.execute("COMMIT")

    def take(self, key: bytes) -> bytes | None:
        """Return the next reply to a request; None if there are no more.

        Raises:
            KeyError: the cassette does not know the request.
        """
        self._check(key)
        row = self._db.execute(
            "SELECT r.raw FROM known k JOIN reply r ON r.key = k.key AND r.n = k.used "
            "WHERE k.key = ?",
            (key,),
        ).fetchone()
        if row is None:
            return None
        self._db.execute("UPDATE known SET used = used + 1 WHERE key = ?", (key,))
        return zlib.decompress(row[0])

    def vector(self, key: bytes) -> bytes | None:
        """Return the vector of a text as little-endian float32; None if it was not embedded.

        Raises:
            KeyError: the cassette does not know the request.
        """
        self._check(key)
        row = self._db.execute("SELECT f32 FROM vector WHERE key = ?", (key,)).fetchone()
        return None if row is None else bytes(row[0])

    def _check(self, key: bytes) -> None:
        if self._db.execute("SELECT 1 FROM known WHERE key = ?", (key,)).fetchone() is None:
            raise KeyError(key)

    def left_over(self) -> Iterator[bytes]:
        """Yield requests with replies that nobody took."""
        for (key,) in self._db.execute("SELECT key FROM known WHERE used < n"):
            yield key

    def close(self) -> None:
        """Close the database."""
        self._db.close()
