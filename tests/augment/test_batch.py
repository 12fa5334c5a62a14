"""Batches from end to end: the command, a loopback account, and every way for it to go wrong."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import re
from base64 import b32decode
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from augment.batch import TO_POLL, TO_SUBMIT, Batches
from augment.batch_files import AnswerLine, parse_answer
from augment.batch_wait import wait
from augment.cli import parser_of, run_command
from augment.clock import SystemClock
from augment.config import load_config
from augment.errors import AuthStop, BudgetStop
from augment.redact import Secret
from augment.remote_batches import RemoteBatches, RemoteError
from augment.store import Store
from augment.store.claims import unpack
from augment.store.parts import list_parts
from llmrec_pl.errors import AugmentationError, ConfigError
from tests.augment.batch_job import KEY, KEY_ENV, USERS, Job
from tests.augment.batch_server import (
    Account,
    Fault,
    answered,
    never_tried,
    refused,
    response,
)
from tests.augment.fault_server import FaultServer
from tests.augment.films import write_films


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    return write_films(tmp_path_factory.mktemp("films") / "data", users=USERS)


@pytest.fixture
def account():
    return Account()


@pytest.fixture
def server(account):
    with FaultServer(routes=account) as running:
        yield running


@pytest.fixture
def job(tmp_path, films, account, server, monkeypatch):
    monkeypatch.setenv(KEY_ENV, KEY)
    return Job(tmp_path, films, account, server.url)


# The usual way -----------------------------------------------------------------------------


def test_everything_is_answered_through_one_remote_batch(job, server, capsys):
    job.all_the_way()
    assert job.states == {"DONE": USERS}
    assert job.parts == ["ingested"]
    assert len(job.results) == USERS
    assert len(job.account.batches) == 1
    (batch,) = job.account.batches.values()
    assert batch["endpoint"] == "/v1/chat/completions"
    assert batch["metadata"]["part"] == job.files[0].stem
    assert batch["metadata"]["sha"] == hashlib.sha256(job.files[0].read_bytes()).hexdigest()
    assert batch["metadata"]["store"] == job.rows("SELECT v FROM meta WHERE k='store_uuid'")[0][0]
    assert job.anomalies == []
    assert "12 done (accepted)" in capsys.readouterr().out

    run_command("run", ["--config", str(job.config), "--no-export"])
    assert server.posts == []


def test_the_cost_is_that_of_the_batch_price(job):
    job.build()
    held = job.ledger.reserved_pusd
    assert held > 0
    job.batch("submit")
    job.batch("poll")
    rows = job.rows(
        "SELECT a.tok_in, a.tok_out, a.cost_pusd, p.tier FROM attempt a JOIN price p "
        "ON p.id = a.price"
    )
    # gpt-4o-mini by batch: 0.075 and 0.30 USD a million tokens
    assert [cost for *_, cost, _ in rows] == [75_000 * i + 300_000 * o for i, o, *_ in rows]
    assert {tier for *_, tier in rows} == {"batch"}
    ledger = job.ledger
    assert ledger.reserved_pusd == 0
    assert ledger.spent_pusd == sum(cost for *_, cost, _ in rows) < held


def test_a_line_is_the_request_and_its_name_comes_from_its_key(job):
    job.build()
    lines = job.asked()
    rows = job.rows("SELECT key, body FROM request ORDER BY id")
    assert [line["body"] for line in lines] == [unpack(body) for _, body in rows]
    assert len({line["custom_id"] for line in lines}) == len(lines)
    for line, (key, _) in zip(lines, rows, strict=True):
        assert line["method"] == "POST"
        assert line["url"] == "/v1/chat/completions"
        assert len(line["custom_id"]) == 32
        assert b32decode(line["custom_id"]) == key[:20]
    assert job.files[0].stat().st_mode & 0o777 == 0o600


def test_files_stay_within_lines_and_bytes(job):
    job.build("--max-lines", 5)
    assert [len(job.asked(path)) for path in job.files] == [5, 5, 2]
    sizes = [len(text) + 1 for path in job.files for text in path.read_text().splitlines()]
    assert job.states == {"IN_BATCH": USERS}

    job.batch("discard", *[path.stem for path in job.files])
    assert job.states == {"PLANNED": USERS}
    most = 3 * max(sizes)
    before = len(job.files)
    job.build("--max-bytes", most)
    new = job.files[before:]
    assert all(path.stat().st_size <= most for path in new)
    assert sum(len(job.asked(path)) for path in new) == USERS


def test_a_request_larger_than_a_file_is_left_to_run(job, capsys):
    job.build("--max-bytes", "100")
    assert job.parts == []
    assert job.states == {"PLANNED": USERS}
    assert "12 requests are larger" in capsys.readouterr().out


def test_run_leaves_alone_what_is_in_a_part(job, server):
    job.build()
    run_command("run", ["--config", str(job.config), "--no-export"])
    assert server.posts == []
    job.batch("submit")
    job.batch("poll")
    assert job.states == {"DONE": USERS}


def test_rejected_answers_go_into_the_next_build(job, account):
    account.answers = lambda n, asked: answered(n, asked, {"content": "no", "do": "ok"})
    job.content["tasks"]["pairs"]["temperature"] = 0
    job.write()
    job.all_the_way()
    assert job.states == {"FOLLOWED": USERS, "PLANNED": USERS}

    account.answers = answered
    job.all_the_way()
    assert job.states == {"FOLLOWED": USERS, "DONE": USERS}
    assert all(len(line["body"]["messages"]) > 1 for line in job.asked())
    assert len(account.batches) == 2


def test_texts_are_embedded_by_batch_too(tmp_path, films, account, server, monkeypatch):
    monkeypatch.setenv(KEY_ENV, KEY)
    tasks = {"pairs": None, "profiles": {}, "embed": {"dimensions": 8}}
    job = Job(tmp_path, films, account, server.url, **tasks)
    job.all_the_way()
    job.all_the_way()
    batch = list(account.batches.values())[-1]
    assert batch["endpoint"] == "/v1/embeddings"
    assert all(isinstance(line["body"]["input"], str) for line in job.asked())
    kinds = dict(
        job.rows(
            "SELECT s.kind, count(*) FROM result t JOIN request r ON r.id = "
            "t.request JOIN spec s ON s.id = r.spec GROUP BY 1"
        )
    )
    assert kinds["profiles"] == USERS
    assert kinds["embed"] == len(job.asked()) >= 1
    assert job.anomalies == []
    assert job.ledger.reserved_pusd == 0


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
    assert sum("401" in text for text in said) == 2


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


def test_remote_files_are_deleted_only_when_asked_for_and_taken_in(job, account):
    job.build()
    job.batch("submit")
    job.batch("poll", "--delete-remote")
    assert account.files == {}
    assert job.states == {"DONE": USERS}


# Money -------------------------------------------------------------------------------------


def test_what_the_budget_does_not_cover_is_left_out(job, capsys):
    job.build()
    (bounds,) = job.rows("SELECT max(reserved_pusd) FROM attempt")
    job.batch("discard", job.files[0].stem)
    capsys.readouterr()
    cap = 3 * bounds[0] / 10**12
    job.batch("build", "--max-usd", f"{cap:.12f}")
    n = len(job.asked())
    assert 3 <= n < USERS
    ledger = job.ledger
    assert ledger.spent_pusd + ledger.reserved_pusd <= ledger.cap_pusd
    assert "left out: the budget" in capsys.readouterr().out
    assert job.states == {"IN_BATCH": n, "PLANNED": USERS - n}


def test_a_budget_for_not_even_one_request_stops(job):
    with pytest.raises(BudgetStop):
        job.batch("build", "--max-usd", "0.000000001")
    assert job.parts == []
    assert list((job.store / "batches").iterdir()) == []


def test_parts_that_cost_need_a_budget_and_a_price(job):
    with pytest.raises(ConfigError, match="--max-usd"):
        job.batch("build")
    job.content["provider"]["chat_model"] = "unheard-of"
    job.write()
    with pytest.raises(ConfigError, match="batch price"):
        job.build()


def test_building_asks_no_server(job, server):
    job.content["provider"]["structured"] = "auto"
    job.write()
    with pytest.raises(ConfigError, match="structured=json_schema"):
        job.build()
    assert server.posts == []
    assert job.account.calls == []


# By hand -----------------------------------------------------------------------------------


def handed(job, folder, *words):
    """Build for somebody else; return the files that they get."""
    job.batch("build", "--handover", folder, *words)
    return sorted(folder.glob("*.jsonl"))


def answer_file(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_anyone_can_answer_a_file_in_simple_lines(job, tmp_path, server):
    paths = handed(job, tmp_path / "for-anna", "--max-lines", "7")
    assert len(paths) == 2
    assert job.ledger.reserved_pusd == 0
    lines = []
    for path in paths:
        for n, asked in enumerate(job.asked(path)):
            body = answered(n, asked)["response"]["body"]
            lines.append(json.dumps({"custom_id": asked["custom_id"], "body": body}))
    job.batch("ingest", answer_file(tmp_path / "back.jsonl", reversed(lines)))
    assert job.states == {"DONE": USERS}
    assert job.parts == ["ingested", "ingested"]
    assert job.ledger.spent_pusd == 0
    assert server.posts == job.account.calls == []


def as_vllm(n, asked):
    """A line in the form that `vllm run-batch` writes."""
    if n == 0:
        error = {"message": "too long", "type": "BadRequestError", "param": None, "code": 400}
        said = {"status_code": 400, "request_id": "vllm-batch-1", "body": None}
        return {"id": "vllm-1", "custom_id": asked["custom_id"], "response": said, "error": error}
    body = answered(n, asked)["response"]["body"]
    said = {"status_code": 200, "request_id": f"vllm-batch-{n}", "body": body}
    return {"id": f"vllm-{n}", "custom_id": asked["custom_id"], "response": said, "error": None}


def test_what_vllm_run_batch_writes_is_taken_in(job, tmp_path):
    (path,) = handed(job, tmp_path / "vllm")
    lines = [json.dumps(as_vllm(n, asked)) for n, asked in enumerate(job.asked(path))]
    job.batch("ingest", answer_file(tmp_path / "out.jsonl", lines))
    assert job.states == {"DONE": USERS - 1, "QUARANTINED": 1}
    assert job.codes["http_400"] == 1


def test_a_handed_part_is_never_submitted(job, tmp_path, account):
    handed(job, tmp_path / "out")
    job.batch("submit")
    assert account.calls == []
    assert job.parts == ["handed"]


def test_a_torn_file_counts_as_far_as_it_goes_and_the_rest_later(job, tmp_path, capsys):
    (path,) = handed(job, tmp_path / "out")
    lines = [json.dumps(answered(n, asked)) for n, asked in enumerate(job.asked(path))]
    torn = tmp_path / "torn.jsonl"
    torn.write_text("\n".join(["", *lines[:3], "not json", *lines[3:5], lines[5][:-30]]))
    job.batch("ingest", torn)
    told = capsys.readouterr().out
    assert "line 5: no valid JSON" in told
    assert "line 8: no valid JSON" in told
    assert "perhaps torn" in told
    assert job.states == {"DONE": 5, "IN_BATCH": USERS - 5}
    assert job.parts == ["handed"]
    job.batch("ingest", answer_file(tmp_path / "whole.jsonl", lines))
    assert job.states == {"DONE": USERS}
    assert job.parts == ["ingested"]


def test_final_plans_the_rest_again_and_late_answers_are_still_welcome(job, tmp_path, capsys):
    (path,) = handed(job, tmp_path / "out")
    lines = [json.dumps(answered(n, asked)) for n, asked in enumerate(job.asked(path))]
    job.batch("ingest", "--final", answer_file(tmp_path / "some.jsonl", lines[:4]))
    assert job.states == {"DONE": 4, "PLANNED": USERS - 4}
    assert job.parts == ["ingested"]
    assert "8 requests were not answered and are planned again" in capsys.readouterr().out

    job.batch("ingest", answer_file(tmp_path / "late.jsonl", lines))
    assert job.states == {"DONE": USERS}
    assert "4 lines were taken in before" in capsys.readouterr().out
    assert job.ledger.reserved_pusd == 0


def test_late_answers_to_what_lies_in_a_newer_part_settle_that(job, tmp_path):
    (old,) = handed(job, tmp_path / "old")
    lines = [json.dumps(answered(n, asked)) for n, asked in enumerate(job.asked(old))]
    job.batch("discard", job.files[0].stem)
    handed(job, tmp_path / "new")
    job.batch("ingest", answer_file(tmp_path / "late.jsonl", lines))
    assert job.states == {"DONE": USERS}
    assert job.parts == ["discarded", "ingested"]


def test_error_lines_taken_in_twice_count_once(job, tmp_path):
    (path,) = handed(job, tmp_path / "out")
    lines = [json.dumps(refused(n, asked, 500)) for n, asked in enumerate(job.asked(path))]
    file = answer_file(tmp_path / "errors.jsonl", lines)
    job.batch("ingest", file)
    before = job.rows("SELECT state, tries FROM request")
    job.batch("ingest", file)
    assert job.rows("SELECT state, tries FROM request") == before
    assert job.rows("SELECT count(*) FROM attempt") == [(USERS,)]


def test_a_file_for_another_store_is_an_error_and_an_anomaly(job, tmp_path):
    (path,) = handed(job, tmp_path / "out")
    lines = [json.dumps({"custom_id": f"X{n}", "body": {}}) for n, _ in enumerate(job.asked(path))]
    with pytest.raises(AugmentationError, match="right store"):
        job.batch("ingest", answer_file(tmp_path / "foreign.jsonl", lines))
    assert job.anomalies == ["batch_unknown_id"]
    assert job.states == {"IN_BATCH": USERS}


def test_a_part_that_was_answered_by_hand_in_part_is_not_submitted(job, tmp_path, account):
    job.build()
    lines = [json.dumps(answered(n, asked)) for n, asked in enumerate(job.asked())]
    job.batch("ingest", answer_file(tmp_path / "some.jsonl", lines[:2]))
    with pytest.raises(AugmentationError, match="pay twice"):
        job.batch("submit")
    assert account.calls == []
    job.batch("discard", job.files[0].stem)
    assert job.states == {"DONE": 2, "PLANNED": USERS - 2}
    assert job.ledger.reserved_pusd == 0


def test_a_changed_file_is_not_uploaded(job, account):
    job.build()
    job.files[0].write_bytes(job.files[0].read_bytes().replace(b"POST", b"GETT", 1))
    with pytest.raises(AugmentationError, match="not what was built"):
        job.batch("submit")
    assert account.calls == []


def test_final_does_not_give_up_a_batch_that_runs(job, tmp_path):
    job.build()
    job.batch("submit")
    with pytest.raises(AugmentationError, match="may answer yet"):
        job.batch("ingest", "--final", "--part", job.files[0].stem)
    assert job.states == {"IN_BATCH": USERS}


def test_a_heuristic_provider_has_nothing_to_batch(job):
    job.content["provider"] = {"name": "heuristic"}
    job.write()
    with pytest.raises(ConfigError, match="answered in this process"):
        job.batch("build")


def test_list_shows_parts_and_a_store_alone_is_enough(job, capsys):
    job.build("--max-lines", "6")
    capsys.readouterr()
    run_command("batch", ["list", "--store", str(job.store), "--json"])
    parts = json.loads(capsys.readouterr().out)
    assert [(p["state"], p["n"], p["lines"]) for p in parts] == [("built", 6, {"intent": 6})] * 2
    run_command("batch", ["submit", "--store", str(job.store)])
    run_command("batch", ["poll", "--store", str(job.store)])
    assert job.states == {"DONE": USERS}
    run_command("batch", ["list", "--store", str(job.store)])
    assert capsys.readouterr().out.count("ingested") >= 2


def test_no_key_in_any_file_or_word(job, account, capfd):
    leaky = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}."}}).encode()
    account.faults = [
        Fault("POST", "/files", 401, body=leaky),
        Fault("GET", r"/batches/.*", 500, body=leaky),
    ]
    account.answers = lambda n, asked: (
        response(n, asked, 401, json.loads(leaky)) if n == 0 else answered(n, asked)
    )
    job.build()
    for action in ("submit", "submit", "poll", "poll"):
        try:
            job.batch(action)
        except (AuthStop, RemoteError) as error:
            print(error)
    assert job.states == {"DONE": USERS - 1, "PLANNED": 1}
    assert account.keys == {f"Bearer {KEY}"}
    for path in job.folder.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path
    told = capfd.readouterr()
    assert KEY not in told.out + told.err


# Lines -------------------------------------------------------------------------------------

WORDS = st.sampled_from(
    ["custom_id", "response", "error", "body", "status_code", "code", "message", "choices", "A"]
)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | WORDS,
    lambda part: st.lists(part, max_size=3) | st.dictionaries(WORDS, part, max_size=5),
    max_leaves=12,
)


@settings(max_examples=200)
@given(st.binary(max_size=60) | JSON_VALUES.map(lambda value: json.dumps(value).encode()))
def test_no_line_of_a_stranger_raises(text):
    line = parse_answer(text, 7)
    assert line.number == 7
    if isinstance(line, AnswerLine):
        assert (line.raw is None) != (line.failure is None)
        assert line.failure is None or line.failure.billed == "no"


@pytest.mark.parametrize("content", ["é 😀", 'quotes " and \\ and \n', "\ud800", " ", "1e400"])
def test_a_body_comes_out_as_it_went_in(content):
    body = {"choices": [{"message": {"content": content}}], "usage": {"prompt_tokens": 1.5}}
    for entry in ({"body": body}, {"response": {"status_code": 200, "body": body}}):
        line = parse_answer(json.dumps({"custom_id": "A", **entry}).encode(), 1)
        assert json.loads(line.raw) == body
    line = parse_answer(json.dumps({"custom_id": "A", "response": body}).encode(), 1)
    assert json.loads(line.raw) == body


def test_a_line_that_cannot_be_kept_does_not_harm_the_others(job, tmp_path, capsys):
    (path,) = handed(job, tmp_path / "out")
    lines = [answered(n, asked) for n, asked in enumerate(job.asked(path))]
    lines[3]["response"]["body"]["model"] = 10**30
    lines[4]["response"]["body"]["usage"]["prompt_tokens"] = 10**30
    lines[5]["response"]["body"]["choices"] = 10**30
    job.batch("ingest", answer_file(tmp_path / "odd.jsonl", map(json.dumps, lines)))
    assert job.states["DONE"] >= USERS - 3
    assert job.ledger.reserved_pusd == 0


def test_actions_named_in_the_docs_exist():
    page = Path(__file__).parents[2] / "docs" / "batch.md"
    for action in re.findall(r"`batch (\w+)", page.read_text(encoding="utf-8")):
        with pytest.raises(SystemExit) as ended:
            parser_of("batch").parse_args([action, "--help"])
        assert ended.value.code == 0
