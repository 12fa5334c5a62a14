"""A disk that fills up: nothing more is sent, nothing is lost, nothing is paid twice."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import hashlib
import json
import resource
import threading
import time
from types import SimpleNamespace

import pytest

from augment.budget import read_ledger, recompute
from augment.cli import main
from augment.errors import StoreFullStop
from augment.store import Store, anomaly, open_readonly
from tests.augment.ask import DEFAULTS, ask
from tests.augment.command import KEY, Command
from tests.augment.drive import plain_spec, plan_all, work
from tests.augment.fault_replies import Step, limited
from tests.augment.fault_server import FaultServer
from tests.augment.lives import C, check, finish, start, until
from tests.augment.small_disk import SmallDisk


@pytest.fixture
def disk(tmp_path):
    try:
        small = SmallDisk(tmp_path / "disk")
    except OSError as error:
        pytest.skip(f"no tmpfs can be mounted here: {error}")
    yield small
    small.unmount()


def paid_twice(server):
    posts = collections.Counter(post["digest"] for post in server.posts if post["usage"])
    return [digest for digest, n in posts.items() if n > 1]


# Pages run out ---------------------------------------------------------------------------------


@pytest.mark.parametrize("pages", [0, 1, 2, 3, 5, 8])
def test_a_store_without_room_for_a_page_stops_before_another_post(tmp_path, pages):
    """Wherever it happens: intents and settlements need new pages in turn."""
    failed = []

    def watch(store):
        while store.writer.alive and not failed:
            if store.writer.failure is not None:
                failed.append(time.monotonic())
            time.sleep(0.001)

    with FaultServer([Step(latency=0.02)]) as server:
        with Store(tmp_path / "s", create=True, spool_size=2**20) as store:
            spec_id = plan_all(store, plain_spec(), 150)
            used = store.do(lambda db: db.execute("PRAGMA page_count").fetchone()[0])
            store.do(lambda db: db.execute(f"PRAGMA max_page_count = {used + pages}").fetchone())
            watching = threading.Thread(target=watch, args=(store,))
            watching.start()
            args = SimpleNamespace(**DEFAULTS, url=[server.url])
            with pytest.raises(StoreFullStop, match="Make space") as stop:
                asyncio.run(work(store, plain_spec(), spec_id, args))
        watching.join()
        assert stop.value.exit_code == 74
        assert not [post for post in server.posts if post["t"] > failed[0] + 0.05]
        asked = ask(tmp_path / "s", server, n=150)
    assert asked.states == {"DONE": 150}
    assert paid_twice(server) == []


# The disk is full ------------------------------------------------------------------------------


def test_full_while_planning(disk, tmp_path):
    with FaultServer() as server:
        command = Command(tmp_path, server, users=2000)
        command.store.symlink_to(disk.folder / "s")
        Store(disk.folder / "s", create=True).close()
        disk.fill(leave=100_000)
        status, said = command("run")
        assert (status, server.posts) == (74, []), said
        assert "Make space" in said
        disk.free()
        status, said = command("plan")
        assert status == 0, said
    with contextlib.closing(open_readonly(command.store)) as db:
        assert db.execute("SELECT count(*) FROM wanted").fetchone() == (2000,)
        assert db.execute("SELECT count(*) FROM request WHERE state <> 0").fetchone() == (0,)


def test_full_before_an_intent(disk):
    def script(number, _):
        return limited(retry_after_ms=1500) if number < C else Step()

    folder = disk.folder / "s"
    with FaultServer(script) as server:
        process = start(folder, server, n=40)
        until(lambda: len(server.posts) == C and not server.in_flight, process)
        until(lambda: all_settled(folder), process)
        disk.fill()
        said = finish(process, status=74)
        assert said["stop"] == "StoreFullStop"
        assert len(server.posts) == C, "nothing was sent without its intent"
        disk.free()
        finish(start(folder, server, n=40))
        assert check(folder, server, 40).unknown == 0
    assert len(server.posts) == C + 40


def all_settled(folder):
    with contextlib.closing(open_readonly(folder)) as db:
        return db.execute("SELECT count(*) FROM attempt WHERE state = 0").fetchone() == (0,)


@pytest.mark.parametrize("kind", ["pairs", "embed"])
def test_full_before_replies_are_settled(disk, kind):
    """Embeddings meet it in `vectors.sqlite`, which is committed first."""
    folder, n, calls = disk.folder / "s", 40, C if kind == "pairs" else 1
    with FaultServer([Step(latency=1.0, times=calls), Step()]) as server:
        process = start(folder, server, n=n, extra=["--kind", kind])
        until(lambda: server.in_flight == calls, process)
        disk.fill()
        said = finish(process, status=74)
        assert said["stop"] == "StoreFullStop"
        assert len(server.posts) == calls, "nothing was sent after it"
        with contextlib.closing(open_readonly(folder)) as db:
            assert read_ledger(db) == recompute(db)
        disk.free()
        said = finish(start(folder, server, n=n, extra=["--kind", kind]))
        asked = check(folder, server, n)
    assert said["recovered"] == [calls, 0, 0], "every body that was read is there"
    assert asked.unknown == 0
    assert paid_twice(server) == []
    assert len(server.posts) == (n if kind == "pairs" else 1)


def test_full_before_it_is_opened(disk, tmp_path):
    with FaultServer() as server:
        command = Command(tmp_path, server)
        command.store.symlink_to(disk.folder)
        disk.fill()
        status, said = command("run")
        assert (status, server.posts) == (74, []), said
        assert "Traceback" not in said
        disk.free()
        assert command("run", "--no-export")[0] == 0
        disk.fill()
        assert command("run")[0] == 74, "its own files are there already"
        assert len(server.posts) == 12


def test_read_only_from_the_start(disk, tmp_path):
    with FaultServer() as server:
        command = Command(tmp_path, server)
        command.store.symlink_to(disk.folder)
        disk.read_only()
        status, said = command("run")
        assert (status, server.posts) == (74, []), said
        assert "give permission" in said


def test_full_before_the_last_checkpoint(disk, capfd):
    with Store(disk.folder / "s", create=True, spool_size=65536) as store:
        for i in range(200):
            store.do(lambda db, i=i: anomaly(db, i, "row", "x" * 9000))
        disk.fill()
    disk.free()
    assert "Traceback" not in capfd.readouterr().err
    with Store(disk.folder / "s") as store:
        assert store.do(lambda db: db.execute("SELECT count(*) FROM anomaly").fetchone()) == (200,)


def test_full_while_exporting_leaves_the_old_export(disk, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def here(*arguments):
        """Run a command in this process; returns its status."""
        try:
            main([*map(str, arguments), "--config", str(command.config)])
        except SystemExit as leave:
            return leave.code
        return 0

    def export():
        return here("export", "--out", disk.folder / "out")

    def content():
        found = sorted(p for p in (disk.folder / "out").rglob("*") if p.is_file())
        return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in found}

    with FaultServer() as server:
        tasks = {"profiles": {}, "attributes": {}, "embed": {}}
        command = Command(tmp_path, server, users=40, **tasks)
        assert here("run", "--only", "pairs", "--no-export") == 0
        assert export() == 0
        old = content()
        assert here("run", "--no-export") == 0
        for leave in (0, 8192, 20_000):
            disk.fill(leave)
            assert export() == 74, leave
            assert content() == old
            disk.free()
        assert export() == 0
        manifest = json.loads((disk.folder / "out/manifest.json").read_text())
        assert manifest["content_id"]
        assert content() != old
        assert [p.name for p in disk.folder.iterdir()] == ["out"], "nothing is left behind"


# The spool cannot grow -------------------------------------------------------------------------


@contextlib.contextmanager
def no_file_longer_than(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


LONG = Step(content='{"most_liked": 1, "least_liked": 2' + " " * 2**20 + "}")
"""More than the spool holds; compressed it is short."""


def test_a_body_that_the_spool_cannot_hold_is_committed_all_the_same(tmp_path):
    with FaultServer([LONG, Step()]) as server, no_file_longer_than(2**20):
        asked = ask(tmp_path / "s", server, n=1)
    assert asked.states == {"DONE": 1}
    assert asked.raws == 1


def test_nothing_is_sent_after_the_spool_could_not_keep_a_body(tmp_path):
    """The next reply would not survive a kill."""
    with FaultServer([LONG, Step()]) as server, no_file_longer_than(2**20):
        asked = ask(tmp_path / "s", server, n=6, concurrency=1)
    assert asked.stop is not None
    assert asked.stop.exit_code == 74
    assert len(server.posts) == 1
    assert asked.states == {"DONE": 1, "PLANNED": 5}
