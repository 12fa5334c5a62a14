"""What a run shows: a live line on a terminal, JSON lines elsewhere."""

import io
import json
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from augment.clock import SystemClock
from augment.limits import Limits
from augment.meter import Meter
from augment.progress import RunProgress
from augment.recover import Recovered
from augment.store import State


@pytest.fixture
def limits():
    return Limits(SystemClock(), rpm=None, tpm=None, concurrency=4, max_wait_s=9)


def meter_of(done=0, spent=0):
    meter = Meter()
    meter.states[State.DONE], meter.spent_pusd = done, spent
    meter.tokens_in, meter.tokens_out = 700, 90
    return meter


def plain(interval=60.0):
    return RunProgress(Console(file=io.StringIO(), force_terminal=False), interval)


def events(progress):
    return [json.loads(line) for line in progress.console.file.getvalue().splitlines()]


def test_figures_project_cost_and_time_from_what_is_done(limits):
    progress = plain()
    assert progress.figures() is None
    progress.task("pairs", None, 40, meter_of(10, 2 * 10**12), limits)
    time.sleep(0.02)
    figures = progress.figures()
    assert (figures["done"], figures["requests"]) == (10, 40)
    assert (figures["spent"], figures["projected"]) == ("$2.00", "$8.00")
    assert figures["seconds"] >= 0
    assert (figures["tokens_in"], figures["tokens_out"]) == (700, 90)


def test_nothing_is_projected_from_nothing(limits):
    progress = plain()
    progress.task("pairs", None, 40, Meter(), limits)
    figures = progress.figures()
    assert figures["projected"] is None
    assert figures["left_s"] is None


def test_follow_ups_beyond_the_plan_do_not_turn_time_back(limits):
    progress = plain()
    progress.task("pairs", None, 4, meter_of(6, 10**12), limits)
    assert progress.figures()["left_s"] == 0
    assert progress.figures()["projected"] == "$1.00"


def test_without_a_terminal_there_are_json_lines(limits):
    progress = plain(interval=0.05)
    with progress:
        progress.recovered(Recovered(unknown=2))
        progress.planning("pairs", 50_000)
        progress.planning("pairs", 50_001)
        progress.task("pairs", None, 40, meter_of(10), limits)
        limit = time.monotonic() + 10
        while len(events(progress)) < 4 and time.monotonic() < limit:
            time.sleep(0.01)
        progress.task_done("pairs")
    found = events(progress)
    kinds = [event["event"] for event in found]
    assert kinds[:3] == ["recovered", "planning", "progress"]
    assert kinds[-1] == "task_done"
    assert "2 calls of unknown outcome" in found[0]["found"]
    assert found[2]["task"] == "pairs"


def test_it_says_what_calls_wait_for():
    waiting = SimpleNamespace(waiting_for=lambda: "rate limit, 7 s")
    progress = plain()
    progress.task("pairs", None, 40, meter_of(10), waiting)
    assert progress.figures()["waiting_for"] == "rate limit, 7 s"
    assert "waiting: rate limit, 7 s" in progress.lines().plain


def test_the_live_display_has_a_line_for_each_task(limits):
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with RunProgress(console) as progress:
        assert progress.lines().plain == "planning ..."
        progress.task("pairs", None, 40, meter_of(40, 10**12), limits)
        progress.task_done("pairs")
        progress.task("profiles", None, 1234, meter_of(7), limits)
        first, second = progress.lines().plain.splitlines()
    assert first.startswith("pairs ")
    assert "40/40" in first
    assert "$1.00" in first
    assert second.startswith("profiles ")
    assert "7/1,234" in second
    assert progress.lines().plain.splitlines() == [first]
