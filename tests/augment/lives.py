"""Process lives of a run that a test ends: start one, wait for a moment, look at the store."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from augment.store import open_readonly
from tests.augment.ask import Asked

ROOT = Path(__file__).parents[2]
C = 8
"""Calls in flight."""


def environ(fault=None, **more):
    """Variables of a process of its own, dying at a fault point if one is named."""
    values = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}
    return values | ({"AUGMENT_FAULT": fault} if fault else {})


def start(folder, server, *, fault=None, n=60, extra=()):
    """Start the engine on a plan of n requests, in a process of its own."""
    command = [sys.executable, "-m", "tests.augment.drive", str(folder), "--url", server.url]
    command += ["--n", str(n), "--concurrency", str(C), "--priced", "--max-unknowns", "1000"]
    return subprocess.Popen(
        [*command, "--max-tries", "1000", *extra],
        cwd=ROOT, env=environ(fault), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process, status=0):
    """Wait for a process to end well; returns what it said."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == status, err
    return json.loads(out)


def kill(process):
    """End a process by SIGKILL, and wait until it is gone."""
    process.kill()
    process.communicate(timeout=60)


def until(condition, process=None, seconds=30.0):
    """Wait for a condition; fail after so many seconds, or when the process is over."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if process is not None and process.poll() is not None:
            raise AssertionError(f"it ended with {process.returncode}: {process.communicate()}")
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s")
        time.sleep(0.005)
    return found


def check(folder, server, n):
    """Hold a finished store against the server: all done, audited, whole."""
    asked = Asked(folder, None, server)
    assert asked.states == {"DONE": n}
    assert len(asked.results) == n
    assert asked.ledger == asked.audit
    assert asked.billed_pusd() <= asked.ledger.spent_pusd + asked.ledger.reserved_pusd
    with contextlib.closing(open_readonly(folder)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    return asked
