"""Waiting for a batch."""

from __future__ import annotations

import asyncio

import pytest

from augment.batch import TO_POLL, TO_SUBMIT, Batches
from augment.batch_wait import wait
from augment.clock import SystemClock
from augment.config import load_config
from augment.errors import AuthStop
from augment.redact import Secret
from augment.remote_batches import RemoteBatches, RemoteError
from augment.store import Store
from augment.store.parts import list_parts
from llmrec_pl.errors import AugmentationError
from tests.augment.batch_job import KEY, USERS
from tests.augment.batch_server import (
    Fault,
)

# Waiting -----------------------------------------------------------------------------------


class Patient(SystemClock):
    """Notes how long it should have slept."""

    def __init__(self):
        self.slept = []

    async def sleep(self, seconds):
        self.slept.append(seconds)


def waited(job, **options):
    """Wait for all parts of a job; return (slept, said)."""
    clock, said = Patient(), []

    async def work(store):
        provider = load_config([job.config]).provider
        remote = RemoteBatches(provider, key=Secret(KEY))
        batches = Batches(store, remote, clock=clock, say=said.append, **options)
        try:
            await wait(batches, store.do(lambda db: list_parts(db, (*TO_SUBMIT, *TO_POLL))))
        finally:
            await remote.close()

    with Store(job.store) as store:
        asyncio.run(work(store))
    return clock.slept, said


def test_waiting_sits_out_failures_and_slows_down(job, account):
    account.looks = 9
    account.faults = [
        Fault("GET", r"/batches/.*", 401, times=2, body=b'{"error":{"message":"no"}}'),
        Fault("GET", r"/batches/.*", 500, times=2),
        Fault("GET", r"/files/.*/content", 503),
    ]
    job.build()
    slept, said = waited(job)
    assert job.states == {"DONE": USERS}
    assert len(account.batches) == 1
    assert slept[0] == 30
    assert max(slept) > 200
    assert max(slept) <= 600
    assert sum(": HTTP 401" in text for text in said) == 2


def test_a_key_that_stays_refused_ends_the_waiting_and_loses_no_part(job, account):
    account.faults = [Fault("GET", r"/batches/.*", 401, times=99, body=b"{}")]
    job.build()
    with pytest.raises(AuthStop, match="No part is lost") as stop:
        waited(job)
    assert stop.value.exit_code == 5
    assert job.parts == ["created"]
    account.faults = []
    job.batch("poll")
    assert job.states == {"DONE": USERS}


def test_answers_that_are_gone_leave_their_part_to_a_person(job, account):
    account.faults = [Fault("GET", r"/files/.*/content", 404, times=99, body=b"{}")]
    job.build()
    held = job.ledger.reserved_pusd
    _, said = waited(job)
    assert any("discard --lost" in text for text in said)
    assert job.parts == ["ended"]
    name = job.files[0].stem
    with pytest.raises(AugmentationError, match="paid for"):
        job.batch("discard", name)
    job.batch("discard", "--lost", name)
    assert job.states == {"PLANNED": USERS}
    assert job.ledger.reserved_pusd == held
    assert job.rows("SELECT count(*) FROM attempt WHERE state = 3") == [(USERS,)]


def test_a_full_queue_is_waited_for_not_failed(job, account):
    account.status = "failed"
    account.errors = [{"code": "token_limit_exceeded", "message": "Enqueued token limit reached"}]
    job.build()
    job.batch("submit")
    job.batch("poll")
    assert job.parts == ["uploaded"]
    assert job.states == {"IN_BATCH": USERS}
    account.status, account.errors = "completed", []
    waited(job)
    assert job.states == {"DONE": USERS}
    assert job.posts("POST", "/files") == 1
    assert [b["status"] for b in account.batches.values()] == ["failed", "completed"]


def test_our_own_limit_of_enqueued_tokens_keeps_parts_back(job):
    job.build("--max-lines", "4")
    job.batch("submit", "--max-enqueued-tokens", "1")
    assert job.parts == ["created", "built", "built"]
    slept, _ = waited(job, most_enqueued=1)
    assert job.states == {"DONE": USERS}
    assert len(slept) >= 2


def test_our_own_limit_holds_for_parts_that_are_uploaded_already(job, account):
    job.build("--max-lines", "6")
    account.faults = [Fault("POST", r"/batches", 400, times=2)]
    with pytest.raises(RemoteError):
        job.batch("submit")
    assert job.parts == ["uploaded", "uploaded"]
    job.batch("submit", "--max-enqueued-tokens", "1")
    assert job.parts == ["created", "uploaded"]


def test_remote_files_are_deleted_only_when_asked_for_and_taken_in(job, account):
    job.build()
    job.batch("submit")
    job.batch("poll", "--delete-remote")
    assert account.files == {}
    assert job.states == {"DONE": USERS}
