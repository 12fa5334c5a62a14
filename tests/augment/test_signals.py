"""Ctrl-C and a scheduler's SIGTERM, sent to the real command."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time

import pytest

from augment.cli import main
from augment.status import read_status
from augment.store import AttemptState, open_readonly
from tests.augment.command import KEY, Command
from tests.augment.fault_replies import Step, limited
from tests.augment.fault_server import FaultServer
from tests.augment.films import write_films
from tests.augment.lives import until


def attempts(store):
    with contextlib.closing(open_readonly(store)) as db:
        rows = db.execute("SELECT state, count(*) FROM attempt GROUP BY state")
        return {AttemptState(state).name: n for state, n in rows}


def read_until(process, event):
    """Read lines of JSON from its standard error until an event is told."""
    for line in process.stderr:
        if line.startswith(b"{") and json.loads(line)["event"] == event:
            return
    raise AssertionError(f"it ended and never said {event!r}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_sends_nothing_more_and_awaits_what_is_in_flight(tmp_path, number):
    with FaultServer([Step(latency=0.7, times=4), Step()]) as server:
        command = Command(tmp_path, server, users=8)
        process = command.start("run")
        until(lambda: server.in_flight == 4, process)
        process.send_signal(number)
        status, said = command.end(process)
        assert (status, len(server.posts)) == (130, 4)
        assert "stopped: interrupted; calls in flight were awaited" in said
        assert attempts(command.store) == {"OK": 4}
        assert not command.out.exists()
        assert read_status(command.store).runs[0]["exit"] == 130
        if number == signal.SIGINT:
            assert command("run")[0] == 0
            assert len(server.posts) == 8, "nothing is asked twice"


def test_the_second_drops_what_is_in_flight_and_keeps_its_reservation(tmp_path):
    def script(number, _):
        return Step(do="hang") if 2 <= number < 6 else Step()

    with FaultServer(script) as server:
        command = Command(tmp_path, server)
        process = command.start("run")
        until(lambda: server.in_flight == 4 and len(server.posts) == 6, process)
        process.send_signal(signal.SIGINT)
        read_until(process, "stopping")
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        status, said = command.end(process)
        assert time.monotonic() - begin < 10, "the grace of 30 s is not waited for"
        assert status == 130
        assert "4 calls in flight may have been answered" in said
        assert attempts(command.store) == {"OK": 2, "UNKNOWN": 4}
        found = read_status(command.store)
        assert (found.unknown_calls, found.runs[0]["exit"]) == (4, 130)
        assert found.ledger.reserved_pusd > 0
        assert command("run")[0] == 0
        assert len(server.posts) == 12 + 4


def test_a_signal_while_calls_wait_for_the_server_s_pause_ends_the_run_at_once(tmp_path):
    with FaultServer([limited(retry_after=600)]) as server:
        command = Command(tmp_path, server)
        process = command.start("run")
        until(lambda: server.posts and server.in_flight == 0, process)
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert command.end(process)[0] == 130
        assert time.monotonic() - begin < 10
    assert set(attempts(command.store)) == {"UNBILLED"}
    assert read_status(command.store).ledger.reserved_pusd == 0


def test_a_signal_while_the_server_is_probed_ends_the_run(tmp_path):
    with FaultServer(["hang"]) as server:
        command = Command(tmp_path, server, provider={"structured": "auto"})
        process = command.start("run")
        until(lambda: server.in_flight, process)
        process.send_signal(signal.SIGTERM)
        status, said = command.end(process)
        assert (status, len(server.posts)) == (130, 1)
        assert "Traceback" not in said
    assert attempts(command.store) == {"INTENT": 1}, "listed, and settled by the next run"
    assert read_status(command.store).runs[0]["exit"] == 130


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Films with so many users that planning takes three blocks."""
    return write_films(tmp_path_factory.mktemp("many") / "films", users=15_000, history=1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_planning_stops_before_anything_is_sent(tmp_path, many, number):
    def planned():
        with contextlib.suppress(Exception), contextlib.closing(open_readonly(store)) as db:
            return db.execute("SELECT count(*) FROM wanted").fetchone()[0]
        return 0

    with FaultServer() as server:
        command = Command(tmp_path, server, films=many)
        store = command.store
        process = command.start("run")
        until(planned, process)
        process.send_signal(number)
        status, _ = command.end(process)
        assert (status, server.posts) == (130, [])
    assert 0 < planned() < 15_000, "it did not wait for the rest of the plan"
    assert planned() % 5000 == 0, "whole blocks"
    assert read_status(store).runs[0]["exit"] == 130


def test_calls_that_do_not_end_in_time_are_dropped_after_one_signal(tmp_path, monkeypatch):
    monkeypatch.setattr("augment.runner._GRACE", 0.3)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with FaultServer(["hang"]) as server:
        command = Command(tmp_path, server)

        def stop():
            until(lambda: server.in_flight == 4)
            os.kill(os.getpid(), signal.SIGTERM)

        before = signal.getsignal(signal.SIGTERM)
        scheduler = threading.Thread(target=stop)
        scheduler.start()
        with pytest.raises(SystemExit) as left:
            main(["run", "--config", str(command.config)])
        scheduler.join()
    assert left.value.code == 130
    assert attempts(command.store) == {"UNKNOWN": 4}
    assert signal.getsignal(signal.SIGTERM) is before, "handlers are given back"
