"""One store, one worker: a second is turned away, lookers-on are not, the dead block nobody."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time

import pytest

from augment.errors import LockedStop
from augment.status import read_status
from augment.store import Store
from tests.augment.command import KEY, Command
from tests.augment.fault_replies import Step
from tests.augment.fault_server import FaultServer
from tests.augment.lives import environ, kill, until


def test_a_second_run_is_turned_away_and_a_dead_one_is_not_waited_for(tmp_path):
    def script(number, _):
        return Step(do="hang") if 8 <= number < 12 else Step()

    with FaultServer(script) as server:
        command = Command(tmp_path, server, users=20)
        first = command.start("run")
        until(lambda: len(server.posts) == 12 and server.in_flight == 4, first)
        main_file = command.store / "main.sqlite"
        before = main_file.stat().st_mtime_ns, main_file.stat().st_size
        begin = time.monotonic()
        with pytest.raises(LockedStop):
            Store(command.store)
        assert time.monotonic() - begin < 1
        status, said = command("run", "--no-export")
        assert status == 75
        assert f"process {first.pid}" in said
        assert len(server.posts) == 12, "the second sent nothing"
        for _ in range(20):
            found = read_status(command.store)
            assert f"process {first.pid}" in found.holder
            assert found.tasks[0].states == {"done": 8, "in_flight": 4, "planned": 8}
            assert found.unknown_calls == 0
        assert (main_file.stat().st_mtime_ns, main_file.stat().st_size) == before, "no checkpoint"
        kill(first)
        found = read_status(command.store)
        assert (found.holder, found.unknown_calls) == (None, 4)
        assert (command.store / "lock").read_text().startswith(f"process {first.pid}")
        assert command("run")[0] == 0
    assert len(server.posts) == 20 + 4


def test_a_limit_of_64_open_files_slows_a_run_down_and_breaks_nothing(tmp_path):
    with FaultServer([Step(latency=0.05)]) as server:
        command = Command(tmp_path, server, users=80, provider={"concurrency": 64})
        done = subprocess.run(
            [sys.executable, "-m", "augment", "run", "--config", str(command.config)],
            env=environ(OPENAI_API_KEY=KEY),
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "only 64 files" in done.stderr
        assert 1 <= server.most_in_flight <= 16
        assert len(server.posts) == 80
    manifest = json.loads((command.out / "manifest.json").read_text())
    assert manifest["coverage"]["pairs"]["share"] == 1.0
