"""A process that is stopped for longer than all its deadlines, as a laptop that is closed."""

from __future__ import annotations

import signal
import time

from tests.augment.fault_replies import Step
from tests.augment.fault_server import FaultServer
from tests.augment.lives import C, check, finish, start, until

DEADLINE_S = 1.0


def test_deadlines_fire_after_the_sleep_and_the_run_recovers(tmp_path):
    def script(number, _):
        return Step(do="hang") if number in range(16, 20) else Step(latency=0.1)

    limits = ["--timeout", str(DEADLINE_S), "--read-timeout", str(DEADLINE_S)]
    with FaultServer(script) as server:
        process = start(tmp_path / "s", server, n=60, extra=limits)
        until(lambda: len(server.posts) >= 20, process)
        process.send_signal(signal.SIGSTOP)
        time.sleep(2 * DEADLINE_S)  # the sleep itself, not a guess at one
        before = len(server.posts)
        process.send_signal(signal.SIGCONT)
        finish(process)
        asked = check(tmp_path / "s", server, 60)
    assert 4 <= asked.unknown <= C, "those in flight at most"
    assert before < 60
    assert len(server.posts) == 60 + asked.unknown
