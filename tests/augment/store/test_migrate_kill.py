"""A migration that is killed, and one of a large store: every raw body stays, bit for bit."""

from __future__ import annotations

import contextlib
import hashlib
import signal
import sqlite3
import subprocess
import sys

import pytest

from augment.store import Store
from augment.store.migrate import migrate
from tests.augment.lives import environ

N = 100_000
STEP = "ALTER TABLE attempt ADD COLUMN note TEXT"
MIGRATE = """
import os, signal, sqlite3, sys, threading
from pathlib import Path
from augment.store.migrate import migrate

path, moment = Path(sys.argv[1]), sys.argv[2]
temporary = path.with_name(f"{path.name}.v1.bak.tmp")

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def watch():
    while not (temporary.exists() and temporary.stat().st_size):
        pass
    die()

def step(db):
    db.execute(%r)
    db.execute("UPDATE attempt SET note = 'n' WHERE id <= 50000")
    if moment == "in the step":
        die()

db = sqlite3.connect(path, isolation_level=None)
db.execute("PRAGMA cache_size = 50")  # so that the step reaches the log before its end
if moment == "during the copy":
    threading.Thread(target=watch, daemon=True).start()
migrate(db, path, {1: step}, newest=2)
die()
"""


def digest(db):
    """One number for all raw bodies."""
    found = hashlib.sha256()
    for attempt, raw in db.execute("SELECT id, raw FROM attempt ORDER BY id"):
        found.update(b"%d %d " % (attempt, len(raw)) + raw)
    return found.hexdigest()


def version(path):
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        columns = [c[1] for c in db.execute("PRAGMA table_info(attempt)")]
        (number,) = db.execute("PRAGMA user_version").fetchone()
        assert ("note" in columns) == (number == 2), "no version is half there"
        return number, digest(db)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A store of version 1 with 100,000 replies, and the digest of its bodies."""
    folder = tmp_path_factory.mktemp("large")
    with Store(folder / "s", create=True, spool_size=65536) as store:
        rows = ((i.to_bytes(4, "big") * (1 + i % 40),) for i in range(N))
        store.do(lambda db: db.execute("INSERT INTO run(t0) VALUES (0)").rowcount)
        store.do(
            lambda db: (
                db.executemany(
                    "INSERT INTO attempt(run, lane, state, t_start, raw, reserved_pusd) "
                    "VALUES (1, 'sync', 1, 0, ?, 0)",
                    rows,
                ).rowcount
            )
        )
    path = folder / "s/main.sqlite"
    return path, version(path)[1]


@pytest.fixture
def copy(large, tmp_path):
    path = tmp_path / "main.sqlite"
    path.write_bytes(large[0].read_bytes())
    return path


def test_a_large_store_keeps_every_raw_body(large, copy):
    with contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as db:
        assert migrate(db, copy, {1: lambda db: db.execute(STEP)}, newest=2) == 1
    assert version(copy) == (2, large[1])
    assert version(copy.with_name("main.sqlite.v1.bak")) == (1, large[1])


@pytest.mark.parametrize(
    ("moment", "left"), [("during the copy", 1), ("in the step", 1), ("after it", 2)]
)
def test_a_killed_migration_leaves_one_whole_version_and_its_copy(large, copy, moment, left):
    code = MIGRATE % STEP
    done = subprocess.run([sys.executable, "-c", code, str(copy), moment], env=environ())
    assert done.returncode == -signal.SIGKILL
    backup = copy.with_name("main.sqlite.v1.bak")
    if moment != "during the copy":
        assert version(backup) == (1, large[1])
    assert version(copy) == (left, large[1])
    with contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as db:
        migrate(db, copy, {1: lambda db: db.execute(STEP)}, newest=2)
    assert version(copy) == (2, large[1])
    assert version(backup) == (1, large[1])
    assert [p.name for p in copy.parent.glob("*.tmp")] == []
