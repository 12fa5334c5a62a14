"""What the store promises, without a network."""

import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from store_rows import row_of, spec_of

from augment.budget import read_ledger, recompute, set_cap
from augment.errors import BudgetStop, LockedStop, StoreFullStop
from augment.store import (
    AttemptState,
    RequestChange,
    Settlement,
    State,
    Store,
    add_spec,
    anomaly,
    open_readonly,
    plan,
    reserve,
    take_over,
)
from augment.store.claims import claim, count_open
from llmrec_pl.errors import AugmentationError


def reserve_one(store, run, request, bound=100):
    return store.do(
        lambda db: reserve(
            db, run=run, lane="sync", requests=[request], bound_pusd=bound, price=None, now=0
        )
    )


def done(attempt, item, cost=40, **other):
    change = RequestChange(
        item.id, item.key, State.DONE, code="accepted", validator="v", value="{}", **other
    )
    return Settlement(
        attempt, AttemptState.OK, "ok", 1, [change], cost_pusd=cost, raw=b'{"exact": "bytes" }'
    )


def test_equal_requests_are_planned_once_and_both_wanters_are_known(store):
    spec, _ = store.do(lambda db: add_spec(db, spec_of(), 0))
    new = store.do(lambda db: plan(db, spec, [row_of(1), row_of(1, entity=2), row_of(3)]))
    again = store.do(lambda db: plan(db, spec, [row_of(1), row_of(3)]))
    wanted = store.do(lambda db: db.execute("SELECT entity, request FROM wanted").fetchall())
    assert (new, again) == (2, 0)
    assert wanted == [(1, 1), (2, 1), (3, 2)]


def test_a_request_is_never_in_flight_twice(planned):
    store, _, run = planned
    reserve_one(store, run, 1)
    with pytest.raises(ValueError, match="not planned"):
        reserve_one(store, run, 1)
    assert store.do(read_ledger).reserved_pusd == 100


def test_the_cap_refuses_the_send_that_could_break_it_and_undoes_its_intent(planned):
    store, spec, run = planned
    store.do(lambda db: set_cap(db, 250))
    reserve_one(store, run, 1)
    reserve_one(store, run, 2)
    with pytest.raises(BudgetStop, match="budget set"):
        reserve_one(store, run, 3)
    assert store.do(read_ledger) == store.do(recompute)
    assert store.do(lambda db: count_open(db, spec)) == 18


def test_settling_keeps_the_exact_bytes_and_moves_the_reservation(planned):
    store, spec, run = planned
    item = store.do(lambda db: claim(db, spec, 0, 1))[0]
    attempt = reserve_one(store, run, item.id)
    assert store.settle(done(attempt, item)).result()
    assert not store.settle(done(attempt, item)).result(), "settled once"
    ledger = store.do(read_ledger)
    assert (ledger.spent_pusd, ledger.reserved_pusd) == (40, 0)
    import zlib

    (raw,) = store.do(lambda db: db.execute("SELECT raw FROM attempt").fetchone())
    assert zlib.decompress(raw) == b'{"exact": "bytes" }'


def test_a_late_reply_does_not_change_an_accepted_result(planned):
    store, spec, run = planned
    item = store.do(lambda db: claim(db, spec, 0, 1))[0]
    first = reserve_one(store, run, item.id)
    lost = RequestChange(item.id, item.key, State.PLANNED, unknowns=1, code="ambiguous")
    store.settle(Settlement(first, AttemptState.UNKNOWN, "ambiguous", 1, [lost])).result()
    second = reserve_one(store, run, item.id)
    store.settle(done(second, item)).result()
    late = RequestChange(item.id, item.key, State.DONE, code="accepted", validator="v", value="[]")
    store.settle(Settlement(first, AttemptState.OK, "ok", 2, [late], cost_pusd=50)).result()
    value = store.do(lambda db: db.execute("SELECT value, attempt FROM result").fetchall())
    assert value == [("{}", second)]
    assert store.do(read_ledger).spent_pusd == 90, "both were paid"
    assert store.do(read_ledger) == store.do(recompute)


def test_vectors_are_there_when_their_result_is(planned):
    store, spec, run = planned
    item = store.do(lambda db: claim(db, spec, 0, 1))[0]
    vector = np.arange(4, dtype=np.float32)
    store.settle(done(reserve_one(store, run, item.id), item, vector=vector)).result()
    np.testing.assert_array_equal(store.vectors.get(item.key), vector)


def test_unsent_requests_go_over_to_the_spec_that_wants_them_now(store):
    old, new = spec_of(), spec_of(prompt_sha="other template, equal text")
    first, _ = store.do(lambda db: add_spec(db, old, 0))
    store.do(lambda db: plan(db, first, [row_of(1), row_of(2)]))
    second, _ = store.do(lambda db: add_spec(db, new, 0))
    store.do(lambda db: plan(db, second, [row_of(1)]))
    assert store.do(lambda db: count_open(db, second)) == 1
    assert store.do(lambda db: take_over(db, first)) == 1, "back to the first, which wants it too"
    assert store.do(lambda db: count_open(db, first)) == 2


def test_a_second_process_is_refused_and_told_who_holds_the_store(store):
    code = f"from augment.store import Store; Store({str(store.folder)!r})"
    start = time.monotonic()
    with pytest.raises(LockedStop, match="process"):
        Store(store.folder)
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert "LockedStop" in other.stderr
    assert time.monotonic() - start < 10


def test_a_lock_file_left_by_a_dead_process_does_not_block(tmp_path):
    code = (
        "import os, signal\nfrom augment.store import Store\n"
        f"Store({str(tmp_path / 's')!r}, create=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert (tmp_path / "s/lock").read_text().startswith("process")
    Store(tmp_path / "s").close()


def test_readers_may_look_while_it_is_worked_on_and_never_write(planned):
    store, *_ = planned
    db = open_readonly(store.folder)
    assert db.execute("SELECT count(*) FROM request").fetchone() == (20,)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        db.execute("DELETE FROM request")


def test_files_are_for_their_owner_only(planned):
    store, *_ = planned
    modes = {f.name: stat.S_IMODE(f.stat().st_mode) for f in store.folder.iterdir()}
    assert all(not mode & 0o077 for mode in modes.values()), modes
    assert not stat.S_IMODE(store.folder.stat().st_mode) & 0o077


def test_a_place_without_a_store_names_the_remedy(tmp_path):
    with pytest.raises(AugmentationError, match="augment run"):
        Store(tmp_path / "none")
    with pytest.raises(AugmentationError, match="augment run"):
        open_readonly(tmp_path)
    (tmp_path / "main.sqlite").write_bytes(b"not a database at all" * 100)
    with pytest.raises((AugmentationError, sqlite3.DatabaseError)):
        open_readonly(tmp_path)


def test_a_full_disk_stops_everything_and_loses_nothing(tmp_path):
    with Store(tmp_path / "s", create=True, max_page_count=60, spool_size=65536) as store:
        spec, _ = store.do(lambda db: add_spec(db, spec_of(), 0))

        def fill():
            for block in range(100):
                rows = [row_of(block * 100 + i) for i in range(100)]
                store.do(lambda db, rows=rows: plan(db, spec, rows))

        with pytest.raises(StoreFullStop, match="Make space"):
            fill()
        with pytest.raises(StoreFullStop):
            store.do(read_ledger)
    with Store(tmp_path / "s") as store:
        kept = store.do(lambda db: db.execute("SELECT count(*) FROM request").fetchone()[0])
        assert kept % 100 == 0, "whole blocks only"
        assert store.do(lambda db: plan(db, spec, [row_of(10**6)])) == 1


def test_a_folder_that_cannot_be_written_stops_with_its_name(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreFullStop, match="file"):
        Store(tmp_path / "file" / "s", create=True)


@pytest.mark.parametrize("cut", [0.0, 0.2, 0.37, 0.5, 0.61, 0.83, 0.99])
def test_a_log_cut_by_a_power_failure_opens_to_a_clean_prefix(tmp_path, cut):
    source = tmp_path / "s"
    store = Store(source, create=True, spool_size=65536)
    spec, _ = store.do(lambda db: add_spec(db, spec_of(), 0))
    store.do(lambda db: plan(db, spec, [row_of(i) for i in range(30)]))
    run = store.do(lambda db: db.execute("INSERT INTO run(t0) VALUES (0)").lastrowid)
    for item in store.do(lambda db: claim(db, spec, 0, 30)):
        store.settle(done(reserve_one(store, run, item.id), item)).result()
    shutil.copytree(source, tmp_path / "cut")
    store.close()
    wal = tmp_path / "cut/main.sqlite-wal"
    with wal.open("r+b") as file:
        file.truncate(int(wal.stat().st_size * cut))
    (tmp_path / "cut/main.sqlite-shm").unlink(missing_ok=True)
    with Store(tmp_path / "cut") as after:
        assert after.do(lambda db: db.execute("PRAGMA integrity_check").fetchone()) == ("ok",)
        assert after.do(read_ledger) == after.do(recompute)
        results = after.do(lambda db: db.execute("SELECT request FROM result").fetchall())
        assert [r[0] for r in results] == list(range(1, len(results) + 1)), "a prefix"


def test_a_future_that_nobody_waits_for_does_not_end_the_writer(store):
    going = threading.Event()
    store.put(lambda _: going.wait(5))
    store.put(lambda db: anomaly(db, 0, "seen", "")).cancel()
    going.set()
    kinds = store.put(lambda db: db.execute("SELECT kind FROM anomaly").fetchall())
    assert kinds.result(timeout=5) == [("seen",)]
