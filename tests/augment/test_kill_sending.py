"""kill -9 while calls are under way: what was sent is known to be unknown, and sent once more."""

from __future__ import annotations

import collections
import contextlib
import json
import signal

import pytest

from augment.budget import read_ledger, recompute
from augment.cli import main
from augment.status import read_status
from augment.store import Store, open_readonly
from augment.store.vectors import VectorFile
from tests.augment.drive import plain_row, plain_spec
from tests.augment.fault_replies import Step
from tests.augment.fault_server import FaultServer
from tests.augment.lives import C, check, finish, kill, start, until

ONE_MORE = ["--max-unknowns", "1"]  # the last of an option given twice counts


def in_flight(folder):
    """Attempts that were committed and not settled, with what each has set aside."""
    with contextlib.closing(open_readonly(folder)) as db:
        return dict(db.execute("SELECT id, reserved_pusd FROM attempt WHERE state = 0"))


def listed(folder, capsys):
    """What `unknown list` tells programs."""
    main(["unknown", "list", str(folder), "--json"])
    return {call["attempt"]: call["reserved_pusd"] for call in json.loads(capsys.readouterr().out)}


def most_posts_of_one_key(server):
    return max(collections.Counter(post["digest"] for post in server.posts).values())


def hanging(number, _):
    return Step(do="hang") if number < C else Step()


def dripping(number, _):
    return Step(do="drip", every=0.02) if number < C else Step()


def body_begun(server):
    return len(server.posts) == C and all(post["sent"] > 150 for post in server.posts)


@pytest.mark.parametrize(
    ("script", "moment"),
    [
        (hanging, lambda server: len(server.posts) == C),
        (dripping, body_begun),
    ],
    ids=["before any byte of the reply", "in the middle of the body"],
)
def test_what_the_server_had_is_unknown_listed_and_sent_once_more(tmp_path, script, moment, capsys):
    store = tmp_path / "s"
    with FaultServer(script) as server:
        process = start(store, server, n=20)
        until(lambda: moment(server), process)
        kill(process)
        lost = in_flight(store)
        assert len(lost) == C
        assert all(lost.values()), "their bound is reserved"
        assert listed(store, capsys) == lost
        assert read_status(store).unknown_calls == C
        said = finish(start(store, server, n=20, extra=ONE_MORE))
        asked = check(store, server, 20)
        assert listed(store, capsys) == lost
    assert said["recovered"] == [0, 0, C]
    assert asked.unknown == C
    assert asked.ledger.reserved_pusd == sum(lost.values())
    assert len(server.posts) == 20 + C
    assert most_posts_of_one_key(server) == 2


def test_an_intent_that_was_never_sent_counts_as_unknown_too(tmp_path, capsys):
    store = tmp_path / "s"
    with FaultServer(["hang"]) as server:
        killed = start(store, server, n=20, fault="intent:1")
        killed.communicate(timeout=60)
        assert killed.returncode == -signal.SIGKILL
        assert not server.posts
        lost = in_flight(store)
        assert 1 <= len(lost) <= C
        assert listed(store, capsys) == lost
    with FaultServer() as server:
        finish(start(store, server, n=20, extra=ONE_MORE))
        asked = check(store, server, 20)
    assert asked.unknown == len(lost)
    assert asked.ledger.reserved_pusd == sum(lost.values())
    assert most_posts_of_one_key(server) == 1, "once more, and it was never sent before"


def test_a_person_may_decide_about_them_before_the_next_run(tmp_path, capsys):
    store = tmp_path / "s"
    with FaultServer(["hang"]) as server:
        process = start(store, server, n=20)
        until(lambda: len(server.posts) == C, process)
        assert listed(store, capsys) == {}, "as long as it runs nothing is lost"
        kill(process)
    lost = in_flight(store)
    first, *others = lost
    main(["unknown", "release", str(store), "--id", str(first)])
    assert "1 calls released" in capsys.readouterr().out
    assert list(listed(store, capsys)) == others
    with contextlib.closing(open_readonly(store)) as db:
        assert read_ledger(db) == recompute(db)
        assert read_ledger(db).reserved_pusd == sum(lost.values()) - lost[first]


def test_a_body_that_was_read_is_never_asked_for_again_and_counted_once(tmp_path):
    one = ["--concurrency", "1"]
    with FaultServer() as server:
        killed = start(tmp_path / "s", server, n=12, fault="spooled:5", extra=one)
        killed.communicate(timeout=60)
        assert (killed.returncode, len(server.posts)) == (-signal.SIGKILL, 5)
        said = finish(start(tmp_path / "s", server, n=12, extra=one))
        asked = check(tmp_path / "s", server, 12)
    assert said["recovered"] == [1, 0, 0]
    assert most_posts_of_one_key(server) == 1
    assert asked.ledger.spent_pusd == asked.billed_pusd()


@pytest.mark.parametrize("nth", [6, 14])
def test_a_kill_before_a_commit_returns_leaves_a_settlement_whole_or_undone(tmp_path, nth):
    store = tmp_path / "s"
    with FaultServer([Step(latency=0.01)]) as server:
        killed = start(store, server, fault=f"commit:{nth}")
        killed.communicate(timeout=60)
        assert killed.returncode == -signal.SIGKILL
        with contextlib.closing(open_readonly(store)) as db:
            assert read_ledger(db) == recompute(db)
            halves = (
                "SELECT count(*) FROM attempt a JOIN call_item c ON c.attempt = a.id LEFT JOIN "
                "result r ON r.request = c.request WHERE (a.state = 1) <> (r.request IS NOT NULL) "
                "OR (a.state = 1) <> (a.raw IS NOT NULL)"
            )
            assert db.execute(halves).fetchone() == (0,)
        answered = sum(post["end"] is not None for post in server.posts)
        said = finish(start(store, server))
        asked = check(store, server, 60)
    assert asked.unknown <= C
    assert len(server.posts) <= 60 + C
    assert answered <= asked.raws + asked.unknown
    assert said["recovered"][0] + said["recovered"][2] <= C


def test_vectors_that_were_committed_without_their_results_are_not_paid_again(tmp_path):
    """The spool is lost too, as after a power cut."""
    with FaultServer() as server:
        for nth in (10, 9, 8, 7):  # the commit that settles the one call, at the first try so far
            store = tmp_path / str(nth)
            killed = start(store, server, n=256, fault=f"commit:{nth}", extra=["--kind", "embed"])
            killed.communicate(timeout=60)
            if killed.returncode == -signal.SIGKILL and server.posts:
                break
        until(lambda: server.in_flight == 0)
        posts = len(server.posts)
        for spool in store.glob("spool.*.bin"):
            spool.unlink()
        vectors = VectorFile(store, readonly=True)
        keys = [plain_row(plain_spec("embed"), i).key for i in range(256)]
        assert vectors.known(keys) == set(keys)
        with Store(store) as opened:
            assert not opened.do(lambda db: db.execute("SELECT * FROM result").fetchall())
        said = finish(start(store, server, n=256, extra=["--kind", "embed"]))
        check(store, server, 256)
    assert said["recovered"] == [0, 1, 0]
    assert len(server.posts) == posts == 1
