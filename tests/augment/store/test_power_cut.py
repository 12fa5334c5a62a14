"""A power cut leaves a beginning of the log: whole commits, then nothing."""

from __future__ import annotations

import contextlib
import random
import shutil
import sqlite3

import pytest

from augment.budget import read_ledger, recompute, set_cap
from augment.judge import Policy, judge_reply
from augment.recover import recover
from augment.store import (
    AttemptState,
    RequestChange,
    Settlement,
    State,
    Store,
    add_spec,
    plan,
    reserve,
)
from augment.store.claims import claim
from tests.augment.drive import plain_row, plain_spec
from tests.augment.fault_replies import Step, reply_body

CAP, BOUND, SPOOL = 2_000, 100, 65536
FRAME, HEADER = 24 + 8192, 32
TABLES = {
    "request": "id, state, tries, rejects, unknowns, last_code",
    "attempt": "id, state, cost_pusd, reserved_pusd, raw",
    "result": "*",
    "verdict": "*",
    "ledger": "*",
}


def dump(db):
    return {
        name: db.execute(f"SELECT {columns} FROM {name}").fetchall()
        for name, columns in TABLES.items()
    }


class Written:
    """A store as it lies on the disk in the middle of a run, and what was committed before."""

    def __init__(self, folder):
        self.folder, self.spec = folder, plain_spec()
        self.states, self.spooled = [], {}
        store = Store(folder / "live", create=True, spool_size=SPOOL)
        spec_id = self._step(store, lambda db: add_spec(db, self.spec, 0))[0]
        self._step(
            store, lambda db: plan(db, spec_id, [plain_row(self.spec, i) for i in range(16)])
        )
        self._step(store, lambda db: set_cap(db, CAP))
        run = self._step(store, lambda db: db.execute("INSERT INTO run(t0) VALUES (0)").lastrowid)
        for number, item in enumerate(store.do(lambda db: claim(db, spec_id, 0, 16))):
            self._ask(store, run, number, item)
        shutil.copytree(folder / "live", folder / "disk")
        store.close()
        self.wal = (folder / "disk/main.sqlite-wal").read_bytes()
        self.main = (folder / "disk/main.sqlite").read_bytes()

    def _ask(self, store, run, number, item):
        intent = {"run": run, "lane": "sync", "requests": [item.id], "price": None, "now": 0}
        attempt = self._step(store, lambda db: reserve(db, bound_pusd=BOUND, **intent))
        if number % 5 == 4:  # never answered
            return
        if number % 5 == 3:
            lost = RequestChange(item.id, item.key, State.PLANNED, unknowns=1, code="ambiguous")
            end = Settlement(attempt, AttemptState.UNKNOWN, "ambiguous", 1, [lost])
        else:
            body, _ = reply_body(Step(), "/chat/completions", item.body, number)
            store.spool.write(attempt, body)
            if number >= 10:  # arrived, not settled
                self.spooled[attempt] = body
                return
            end = judge_reply(
                self.spec, [item], body, attempt=attempt, price=None, reserved=BOUND,
                policy=Policy(), now=1,
            )  # fmt: skip
        store.settle(end).result()
        self.states.append(store.do(dump))

    def _step(self, store, operation):
        value = store.do(operation)
        self.states.append(store.do(dump))
        return value

    @property
    def boundaries(self):
        """Offsets at which a frame of the log ends."""
        return range(HEADER, len(self.wal) + 1, FRAME)

    def lay(self, folder, wal, main=None):
        """Lay out a folder as found after the cut."""
        shutil.copytree(self.folder / "disk", folder)
        (folder / "main.sqlite-shm").unlink(missing_ok=True)
        (folder / "main.sqlite-wal").write_bytes(wal)
        if main is not None:
            (folder / "main.sqlite").write_bytes(main)
        return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return Written(tmp_path_factory.mktemp("written"))


def found(path, main, wal):
    """What SQLite makes of a main file and a log; None if there are no tables yet."""
    path.write_bytes(main)
    path.with_name(f"{path.name}-wal").write_bytes(wal)
    path.with_name(f"{path.name}-shm").unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA synchronous = OFF")
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        known = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
        return dump(db) if set(TABLES) <= known else None


def test_wherever_the_log_is_cut_whole_commits_are_left(written, tmp_path):
    rng, last = random.Random(3), -1
    cuts = [*written.boundaries, *(rng.randrange(len(written.wal)) for _ in range(100))]
    for cut in sorted(cuts):
        torn = rng.randbytes(rng.randrange(FRAME)) if rng.random() < 0.5 else b""
        state = found(tmp_path / "cut.sqlite", written.main, written.wal[:cut] + torn)
        if state is None or not state["request"]:
            continue  # before the plan was committed
        place = written.states.index(state)
        assert place >= last, "a longer log never holds less"
        last = place
    assert last == len(written.states) - 1, "the whole log holds everything"


@pytest.mark.parametrize("seed", range(30))
def test_after_any_cut_the_run_goes_on_within_its_promises(written, tmp_path, seed):
    rng = random.Random(seed)
    cut = rng.choice([rng.choice(written.boundaries), rng.randrange(len(written.wal))])
    if seed % 3 == 0:
        cut = len(written.wal)
    folder = written.lay(tmp_path / "cut", written.wal[:cut])
    whole = _tear_spool(folder, written, rng)
    with contextlib.closing(sqlite3.connect(folder / "main.sqlite")) as db:
        known = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'attempt'").fetchone()
        before = dump(db) if known else {"attempt": [], "request": [], "result": []}
    intents = {row[0] for row in before["attempt"] if row[1] == AttemptState.INTENT}
    with Store(folder, spool_size=SPOOL) as store:
        left = recover(store, Policy(), 0)
        after = store.do(dump)
        ledger, audit = store.do(read_ledger), store.do(recompute)
        assert recover(store, Policy(), 0).unknown == 0, "nothing is left to recover"
    assert (left.from_spool, left.unknown) == (len(intents & whole), len(intents - whole))
    assert set(before["result"]) <= set(after["result"]), "an accepted result stays"
    states = {row[0]: row[1] for row in after["request"]}
    assert State.IN_FLIGHT not in states.values()
    assert all(states[row[0]] == State.DONE for row in after["result"])
    unknown = {row[0] for row in after["attempt"] if row[1] == AttemptState.UNKNOWN}
    was = {row[0] for row in before["attempt"] if row[1] == AttemptState.UNKNOWN}
    assert unknown == was | (intents - whole), "exactly the intents without an end"
    assert ledger == audit
    assert ledger.reserved_pusd == BOUND * len(unknown)
    assert ledger.cap_pusd is None or ledger.spent_pusd + ledger.reserved_pusd <= CAP


def _tear_spool(folder, written, rng):
    """Cut the newest body, or all of the file, or nothing; returns the attempts left whole."""
    (path,) = [p for p in folder.glob("spool.*.bin") if _bodies(p, written)]
    kind = rng.choice(["whole", "torn", "gone"])
    if kind == "gone":
        path.unlink()
        return set()
    if kind == "whole":
        return set(written.spooled)
    attempt, body = list(written.spooled.items())[-1]
    content = path.read_bytes()
    end = content.index(body) + len(body)
    with path.open("r+b") as file:
        file.truncate(end - rng.randrange(1, len(body) + 24))
    return set(written.spooled) - {attempt}


def _bodies(path, written):
    content = path.read_bytes()
    return any(body in content for body in written.spooled.values())


@pytest.mark.parametrize("seed", range(12))
def test_a_checkpoint_that_was_done_in_part_is_finished_from_the_log(written, tmp_path, seed):
    rng, path = random.Random(seed), tmp_path / "m.sqlite"
    found(path, written.main, written.wal)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    done, size = path.read_bytes(), 8192
    pages = [done[at : at + size] for at in range(0, len(done), size)]
    old = [written.main[at : at + size] for at in range(0, len(written.main), size)]
    mixed = [
        page if i >= len(old) or rng.random() < 0.5 else old[i] for i, page in enumerate(pages)
    ]
    mixed = mixed[: rng.randrange(len(old), len(pages) + 1)]
    assert found(tmp_path / "n.sqlite", b"".join(mixed), written.wal) == written.states[-1]
