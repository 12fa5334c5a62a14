"""However a batch ends, what was answered counts."""

from __future__ import annotations

import gzip
import json

import pytest

from augment.remote_batches import RemoteError
from tests.augment.batch_job import USERS
from tests.augment.batch_server import (
    Fault,
    answered,
    never_tried,
    refused,
)

# Ends --------------------------------------------------------------------------------------


def test_a_completed_batch_without_files_gives_everything_back(job, account):
    account.patch = {"output_file_id": None, "error_file_id": "", "request_counts": None}
    account.patch["usage"] = None
    job.all_the_way()
    assert job.states == {"PLANNED": USERS}
    assert job.parts == ["ingested"]
    assert job.ledger.reserved_pusd == job.ledger.spent_pusd == 0
    assert job.rows("SELECT max(tries) FROM request") == [(0,)]


@pytest.mark.parametrize("told", [True, False])
def test_of_an_expired_batch_the_answered_part_counts(job, account, told):
    account.status = "expired"
    done = round(0.6 * USERS)
    rest = never_tried if told else lambda n, asked: None
    account.answers = lambda n, asked: answered(n, asked) if n < done else rest(n, asked)
    job.all_the_way()
    assert job.states == {"DONE": done, "PLANNED": USERS - done}
    assert job.ledger.reserved_pusd == 0
    assert job.ledger.spent_pusd > 0
    assert job.rows("SELECT count(*) FROM attempt WHERE cost_pusd > 0") == [(done,)]
    account.status, account.answers = "completed", answered
    job.all_the_way()
    assert job.states == {"DONE": USERS}


def test_a_failed_batch_releases_its_budget_and_says_why(job, account, capsys):
    account.status = "failed"
    account.errors = [{"code": "invalid_json_line", "message": "line 7 is bad", "line": 7}]
    job.all_the_way()
    assert job.states == {"PLANNED": USERS}
    assert job.ledger.reserved_pusd == 0
    assert "invalid_json_line: line 7 is bad" in capsys.readouterr().out


def test_a_cancelled_batch_keeps_what_was_answered(job, account):
    account.looks = 5
    account.answers = lambda n, asked: (
        answered(n, asked) if n < 3 else never_tried(n, asked, "batch_cancelled")
    )
    job.build()
    job.batch("submit")
    job.batch("poll")
    assert job.parts == ["created"]
    job.batch("cancel", job.files[0].stem[:8])
    account.looks = 1
    job.batch("poll")
    assert job.states == {"DONE": 3, "PLANNED": USERS - 3}


def test_odd_lines_are_told_apart_and_the_others_count(job, account, capsys):
    def answers(n, asked):
        stranger = {**asked, "custom_id": "A" * 32}
        return {
            0: [answered(n, asked), answered(n, asked)],
            1: answered(n, stranger),
            2: None,
            3: refused(n, asked, 429, "rate_limit_exceeded"),
            4: refused(n, asked, 500),
            5: refused(n, asked, 400, "invalid_value"),
            6: [json.dumps(answered(n, asked))[:-40]],
        }.get(n, answered(n, asked))

    account.answers = answers
    job.all_the_way()
    codes = job.codes
    assert codes["http_429"] == codes["http_500"] == codes["http_400"] == 1
    assert job.states["QUARANTINED"] == 1
    assert job.states["DONE"] == 1 + (USERS - 7)
    assert {"batch_unknown_id", "batch_duplicate_id", "batch_bad_line"} <= set(job.anomalies)
    told = capsys.readouterr().out
    assert "1 lines answer a request a second time" in told
    assert "1 lines are about requests of no part" in told
    assert "line 4: no valid JSON" in told
    # Of the three without a usable line any may have been charged: their bound stays reserved.
    assert job.rows("SELECT count(*) FROM attempt WHERE state = 3") == [(3,)]
    assert job.ledger.reserved_pusd > 0


def test_a_failure_inside_a_line_is_unbilled_and_bounded(job, account):
    account.answers = lambda n, asked: refused(n, asked, 500)
    for _ in range(5):
        job.all_the_way()
    assert job.states == {"QUARANTINED": USERS}
    assert job.ledger.spent_pusd == job.ledger.reserved_pusd == 0


def test_a_200_counts_even_after_a_line_that_denies_it(job, account):
    account.answers = lambda n, asked: [json.dumps(refused(n, asked, 500)), answered(n, asked)]
    job.all_the_way()
    assert job.states == {"DONE": USERS}
    assert job.rows("SELECT count(*) FROM attempt WHERE raw IS NOT NULL") == [(USERS,)]


def test_usage_that_does_not_add_up_is_an_anomaly(job, account):
    account.usage_off = 3
    job.all_the_way()
    assert job.states == {"DONE": USERS}
    assert job.anomalies == ["batch_usage"]


def test_a_reply_without_usage_costs_its_bound(job, account):
    account.answers = lambda n, asked: answered(n, asked, "no_usage")
    job.build()
    held = job.ledger.reserved_pusd
    job.batch("submit")
    job.batch("poll")
    assert job.ledger.spent_pusd == held


# Downloads ---------------------------------------------------------------------------------


def test_a_broken_download_is_repeated(job, account):
    broken = Fault("GET", r"/files/[^/]+/content", 200, headers={"content-encoding": "gzip"})
    broken.body = b"no gzip at all"
    account.faults = [broken]
    job.build()
    job.batch("submit")
    with pytest.raises(RemoteError):
        job.batch("poll")
    assert job.parts == ["ended"]
    assert job.states == {"IN_BATCH": USERS}
    job.batch("poll")
    assert job.states == {"DONE": USERS}


def test_a_download_that_is_short_without_saying_so_charges_the_rest_as_unknown(job, account):
    job.build()
    job.batch("submit")
    lines = [answered(n, asked) for n, asked in enumerate(job.asked())]
    whole = "\n".join(map(json.dumps, lines)).encode()
    short = Fault("GET", r"/files/[^/]+/content", 200, headers={"content-encoding": "gzip"})
    short.body = gzip.compress(whole[: len(whole) // 2])
    account.faults = [short]
    job.batch("poll")
    done = job.states["DONE"]
    assert 0 < done < USERS
    assert "batch_short" in job.anomalies
    assert job.rows("SELECT count(*) FROM attempt WHERE state = 3") == [(USERS - done,)]
    assert job.ledger.reserved_pusd > 0


def test_a_downloaded_file_that_was_damaged_since_is_fetched_again(job):
    job.build()
    job.batch("submit")
    assert job.killed("batch_ingesting:1", "poll") == -9
    out = job.files[0].with_suffix(".out.jsonl")
    out.write_bytes(out.read_bytes()[:100])
    job.batch("poll")
    assert job.states == {"DONE": USERS}
    assert job.anomalies == []


def test_taking_in_the_same_file_again_changes_nothing(job, capsys):
    job.all_the_way()
    before = job.results, job.ledger, job.rows("SELECT count(*) FROM attempt")
    capsys.readouterr()
    job.batch("ingest", job.files[0].with_suffix(".out.jsonl"))
    job.batch("poll")
    assert (job.results, job.ledger, job.rows("SELECT count(*) FROM attempt")) == before
    assert "12 lines were taken in before" in capsys.readouterr().out
