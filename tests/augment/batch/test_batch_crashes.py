"""Crashes around remote calls: one remote batch and one bill."""

from __future__ import annotations

import pytest

from augment.remote_batches import RemoteError
from tests.augment.batch_job import USERS
from tests.augment.batch_server import (
    Fault,
    answered,
    never_tried,
)

# Crashes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["part_written:1", "part_built:1", "part_built:2"])
def test_a_crash_while_building_loses_and_doubles_nothing(job, fault):
    assert job.killed(fault, "build", "--max-usd", "5", "--max-lines", "5") == -9
    job.build("--max-lines", "5")
    ids = [line["custom_id"] for path in job.files for line in job.asked(path)]
    assert len(ids) == len(set(ids)) == USERS
    assert sorted((job.store / "batches").glob("*")) == sorted(job.files)
    job.batch("submit")
    job.batch("poll")
    assert job.states == {"DONE": USERS}


@pytest.mark.parametrize(
    ("fault", "action"),
    [
        ("batch_uploading:1", "submit"),
        ("batch_uploaded:1", "submit"),
        ("batch_creating:1", "submit"),
        ("batch_created:1", "submit"),
        ("batch_downloaded:1", "poll"),
        ("line_settled:5", "poll"),
        ("batch_ingesting:1", "poll"),
    ],
)
def test_a_crash_leaves_exactly_one_remote_batch_and_one_bill(job, account, fault, action):
    account.answers = lambda n, asked: never_tried(n, asked) if n % 4 == 3 else answered(n, asked)
    job.build()
    if action == "poll":
        job.batch("submit")
    assert job.killed(fault, action) == -9
    if action == "submit":
        job.batch("submit")
    job.batch("poll")
    assert job.parts == ["ingested"]
    assert len(account.batches) == 1
    assert job.posts("POST", "/files") == 1
    assert job.states == {"DONE": 9, "PLANNED": 3}
    assert job.rows("SELECT count(*) FROM attempt WHERE state = 1") == [(9,)]
    assert job.ledger.reserved_pusd == 0
    assert job.anomalies == []


@pytest.mark.parametrize("path", ["/files", "/batches"])
def test_a_lost_reply_is_looked_for_before_anything_is_repeated(job, account, path):
    account.faults = [Fault("POST", path, 502, done=True)]
    job.build()
    with pytest.raises(RemoteError):
        job.batch("submit")
    job.batch("submit")
    job.batch("poll")
    assert job.posts("POST", path) == 1
    assert len(account.batches) == 1
    assert job.states == {"DONE": USERS}


@pytest.mark.parametrize("path", ["/files", "/batches"])
def test_a_refused_call_is_simply_repeated(job, account, path):
    account.faults = [Fault("POST", path, 429)]
    job.build()
    with pytest.raises(RemoteError):
        job.batch("submit")
    assert ("GET", path) not in account.calls
    job.batch("submit")
    assert ("GET", path) not in account.calls
    assert job.parts == ["created"]


def test_adopt_says_what_became_of_a_call_and_sends_nothing(job, account, capsys):
    job.build()
    assert job.killed("batch_created:1", "submit") == -9
    before = [call for call in account.calls if call[0] == "POST"]
    job.batch("adopt")
    assert job.parts == ["created"]
    assert [call for call in account.calls if call[0] == "POST"] == before
    assert "adopted as batch_0" in capsys.readouterr().out
