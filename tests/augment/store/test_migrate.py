"""Older stores are brought up to date, newer ones refused."""

import sqlite3

import pytest

from augment.store import migrate
from augment.store.migrate import migrate as bring_up
from llmrec_pl.errors import AugmentationError


@pytest.fixture
def old(tmp_path, planned):
    store, *_ = planned
    store.do(
        lambda db: db.executemany(
            "INSERT INTO attempt(run, lane, state, t_start, raw, reserved_pusd) "
            "VALUES (1, 'sync', 1, 0, ?, 0)",
            [(bytes([i]) * i,) for i in range(200)],
        )
    )
    path = store.folder / "main.sqlite"
    store.close()
    db = sqlite3.connect(path, isolation_level=None)
    yield db, path
    db.close()


def raws(db):
    return db.execute("SELECT id, raw FROM attempt ORDER BY id").fetchall()


def test_a_step_keeps_every_raw_body_and_a_copy_is_made_first(old):
    db, path = old
    before = raws(db)
    steps = {1: lambda db: db.execute("ALTER TABLE attempt ADD COLUMN note TEXT")}
    assert bring_up(db, path, steps, newest=2) == 1
    assert raws(db) == before
    assert db.execute("PRAGMA user_version").fetchone() == (2,)
    copy = sqlite3.connect(path.with_name("main.sqlite.v1.bak"))
    assert raws(copy) == before
    assert copy.execute("PRAGMA user_version").fetchone() == (1,)


def test_a_failed_step_leaves_the_old_version_whole(old):
    db, path = old
    before = raws(db)

    def broken(db):
        db.execute("ALTER TABLE attempt ADD COLUMN note TEXT")
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        bring_up(db, path, {1: broken}, newest=2)
    assert db.execute("PRAGMA user_version").fetchone() == (1,)
    assert raws(db) == before
    assert "note" not in [c[1] for c in db.execute("PRAGMA table_info(attempt)")]


def test_a_newer_store_is_refused(old):
    db, path = old
    db.execute(f"PRAGMA user_version = {migrate.VERSION + 1}")
    with pytest.raises(AugmentationError, match="update llmrec_pl"):
        bring_up(db, path)


def test_another_program_s_database_is_refused(tmp_path):
    db = sqlite3.connect(tmp_path / "other.sqlite")
    db.execute("CREATE TABLE t(x)")
    with pytest.raises(AugmentationError, match="no store of augment"):
        bring_up(db, tmp_path / "other.sqlite")


def test_the_shipped_schema_is_the_newest_version(planned):
    store, *_ = planned
    assert store.do(lambda db: db.execute("PRAGMA user_version").fetchone()) == (migrate.VERSION,)
    assert set(migrate.STEPS) == set(range(1, migrate.VERSION))
