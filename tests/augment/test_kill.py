"""kill -9, for real, at chosen places and at random moments."""

import contextlib
import random
import signal
import time

import pytest

from augment.store import open_readonly
from tests.augment.ask import Asked
from tests.augment.command import Command
from tests.augment.fault_replies import Step
from tests.augment.fault_server import FaultServer
from tests.augment.lives import C, check, finish, start


@pytest.mark.parametrize(
    ("fault", "posts_lost", "unknown"),
    [
        ("planned:1", 0, 0),
        ("claimed:1", 0, 0),
        ("intent:20", None, None),
        ("spooled:20", None, None),
        ("judged:20", None, None),
    ],
)
def test_a_kill_at_a_chosen_place_loses_nothing(tmp_path, fault, posts_lost, unknown):
    with FaultServer([Step(latency=0.02)]) as server:
        killed = start(tmp_path / "s", server, fault=fault)
        killed.communicate(timeout=60)
        assert killed.returncode == -signal.SIGKILL
        before = len(server.posts)
        said = finish(start(tmp_path / "s", server))
        asked = check(tmp_path / "s", server, 60)
    if posts_lost is not None:
        assert (before, asked.unknown) == (posts_lost, unknown)
    assert asked.unknown <= C
    assert len(server.posts) <= 60 + C
    if fault.startswith("spooled"):
        assert said["recovered"][0] >= 1, "the body that was read is not asked for again"


def test_a_plan_that_was_killed_between_two_blocks_is_finished_by_the_next(tmp_path):
    with FaultServer() as server:
        command = Command(tmp_path, server, users=6000)
        assert command.end(command.start("plan", AUGMENT_FAULT="planned:1"))[0] == -signal.SIGKILL
        assert plan_of(command.store)[:2] == (5000, 0)
        assert command("plan")[0] == 0
        wanted, planned, keys = plan_of(command.store)
        assert (wanted, planned, server.posts) == (6000, 1, [])
    assert len(keys) == len(set(keys)), "a key is planned once"


def plan_of(store):
    """Number of wanted answers, whether that is all, and the keys of requests."""
    with contextlib.closing(open_readonly(store)) as db:
        (wanted,) = db.execute("SELECT count(*) FROM wanted WHERE request IS NOT NULL").fetchone()
        (planned,) = db.execute("SELECT planned FROM spec").fetchone()
        return wanted, planned, [key for (key,) in db.execute("SELECT key FROM request")]


@pytest.mark.slow
def test_fifty_kills_at_random_moments_accept_everything_exactly_once(tmp_path):
    n, rng, rounds = 2000, random.Random(7), 0
    with FaultServer([Step(latency=0.03)]) as server:
        while rounds < 50:
            process = start(tmp_path / "s", server, n=n)
            time.sleep(rng.uniform(0.5, 1.1))
            if process.poll() is not None:
                process.communicate()
                break
            process.kill()
            process.communicate()
            rounds += 1
        finish(start(tmp_path / "s", server, n=n))
        asked = check(tmp_path / "s", server, n)
    assert len(server.posts) <= n + rounds * C
    assert asked.unknown <= rounds * C
    assert rounds >= 10


def test_what_several_kills_lost_is_asked_last_and_all_is_answered(tmp_path):
    """A call of unknown outcome is sent once more; a kill says nothing against a request."""
    usual = ["--max-unknowns", "1", "--max-tries", "5"]
    with FaultServer([Step(latency=60)]) as server:
        for _ in range(3):
            killed = start(tmp_path / "s", server, fault=f"intent:{C}", extra=usual)
            killed.communicate(timeout=60)
            assert killed.returncode == -signal.SIGKILL
    with FaultServer([Step(latency=0.02)]) as server:
        finish(start(tmp_path / "s", server, extra=usual))
        asked = check(tmp_path / "s", server, 60)
    texts = [post["body"]["messages"][0]["content"] for post in server.posts]
    lost = {f"ask {i}" for i in range(3 * C)}
    assert set(texts[-3 * C + C :]) < lost, "those that were lost come last"
    assert len(texts) == len(set(texts)) == 60
    assert asked.unknown == 3 * C


def test_a_request_that_every_process_dies_of_is_held_in_the_end(tmp_path):
    usual = ["--max-unknowns", "1", "--max-tries", "3"]
    with FaultServer() as server:
        for _ in range(3):
            start(tmp_path / "s", server, n=1, fault="intent:1", extra=usual).communicate(
                timeout=60
            )
        finish(start(tmp_path / "s", server, n=1, extra=usual))
        asked = Asked(tmp_path / "s", None, server)
    assert (asked.states, asked.unknown, server.posts) == ({"UNKNOWN": 1}, 3, [])
    assert asked.ledger == asked.audit
