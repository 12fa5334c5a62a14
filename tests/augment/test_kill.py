"""kill -9, for real, at chosen places and at random moments."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ask import Asked

from augment.store import open_readonly
from tests.augment.fault_replies import Step
from tests.augment.fault_server import FaultServer

ROOT = Path(__file__).parents[2]
C = 8


def start(folder, server, *, fault=None, n=60, extra=()):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    env |= {"AUGMENT_FAULT": fault} if fault else {}
    command = [sys.executable, "-m", "tests.augment.drive", str(folder), "--url", server.url]
    command += ["--n", str(n), "--concurrency", str(C), "--priced", "--max-unknowns", "1000"]
    return subprocess.Popen(
        [*command, "--max-tries", "1000", *extra],
        cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(out)


def check(folder, server, n):
    asked = Asked(folder, None, server)
    assert asked.states == {"DONE": n}
    assert len(asked.results) == n
    assert asked.ledger == asked.audit
    assert asked.billed_pusd() <= asked.ledger.spent_pusd + asked.ledger.reserved_pusd
    with contextlib.closing(open_readonly(folder)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    return asked


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
