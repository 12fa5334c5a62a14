"""kill -9 around checkpoints: what was acknowledged is there."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys

from augment.store import Store, open_readonly
from tests.augment.lives import environ, kill

WRITER = """
import sys
from augment.store import Store, anomaly
store = Store(sys.argv[1], create=True, spool_size=65536)
store.do(lambda db: db.execute("PRAGMA wal_autocheckpoint = 8").fetchall())
number = int(sys.argv[2])
while True:
    store.do(lambda db: anomaly(db, number, "row", "x" * 9000))
    print(number, flush=True)
    number += 1
"""


def test_kills_between_and_during_checkpoints_lose_no_acknowledged_row(tmp_path):
    rng, last, sizes = random.Random(5), 0, set()
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "s"), str(last + 1)],
            env=environ(), stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        for _ in range(rng.randrange(6, 40)):
            last = int(process.stdout.readline())
        kill(process)
        sizes.add((tmp_path / "s/main.sqlite").stat().st_size)
        with contextlib.closing(open_readonly(tmp_path / "s")) as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            rows = [t for (t,) in db.execute("SELECT t FROM anomaly ORDER BY id")]
        assert rows[:last] == list(range(1, last + 1))
        assert len(rows) <= last + 40, "at most what was under way"
        last = len(rows)
    assert len(sizes) > 2, "checkpoints were made"
    with Store(tmp_path / "s") as store:
        assert store.do(lambda db: db.execute("SELECT count(*) FROM anomaly").fetchone()) == (last,)
