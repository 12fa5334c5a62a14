"""Schema versions of the store: one numbered step each, and a copy before the first."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from importlib import resources
from typing import TYPE_CHECKING

from llmrec_pl.errors import AugmentationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

APPLICATION_ID = 0x4C524543  # "LREC"
VERSION = 1
STEPS: Mapping[int, Callable[[sqlite3.Connection], None]] = {}
"""Step n turns version n into n + 1; it may add tables and columns, never take away."""


def create(db: sqlite3.Connection) -> None:
    """Make the tables of the newest version in an empty database."""
    script = resources.files("augment.store").joinpath("schema.sql").read_text(encoding="utf-8")
    db.executescript(
        f"BEGIN;\n{script}\nPRAGMA application_id = {APPLICATION_ID};\n"
        f"PRAGMA user_version = {VERSION};\nCOMMIT;"
    )


def check(db: sqlite3.Connection, path: Path, newest: int = VERSION) -> int:
    """Return the version of an existing store.

    Raises:
        AugmentationError: no store of ours, or newer than this program.
    """
    (found,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if found != APPLICATION_ID:
        raise AugmentationError(f"{str(path)!r} is no store of augment; choose another folder.")
    if version > newest:
        raise AugmentationError(
            f"store {str(path)!r} has version {version}, this program knows {newest}; "
            "update llmrec_pl, an older program must not write to it."
        )
    return int(version)


def migrate(
    db: sqlite3.Connection,
    path: Path,
    steps: Mapping[int, Callable[[sqlite3.Connection], None]] = STEPS,
    newest: int = VERSION,
) -> int:
    """Bring a store to the newest version; each step is one transaction with its number.

    Args:
        db: the writing connection, outside a transaction.
        path: its file; a copy ``<file>.v<n>.bak`` is made before the first step.
        steps: the steps by the version they start from.
        newest: the version to reach.

    Returns:
        The number of steps taken.

    Raises:
        AugmentationError: no store of ours, or newer than this program.
    """
    version = check(db, path, newest)
    if version < newest:
        _back_up(db, path.with_name(f"{path.name}.v{version}.bak"))
    taken = 0
    while version < newest:
        db.execute("BEGIN IMMEDIATE")
        try:
            steps[version](db)
            db.execute(f"PRAGMA user_version = {version + 1}")
            db.execute("COMMIT")
        except BaseException:
            db.execute("ROLLBACK")
            raise
        version, taken = version + 1, taken + 1
    return taken


def _back_up(db: sqlite3.Connection, to: Path) -> None:
    if to.exists():
        return
    temporary = to.with_name(f"{to.name}.tmp")
    temporary.unlink(missing_ok=True)
    os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
    with contextlib.closing(sqlite3.connect(temporary)) as copy:
        db.backup(copy)
    temporary.rename(to)
