"""Files answered by hand or by vLLM, and lines of strangers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from augment import batch_wait
from augment.batch_files import AnswerLine, parse_answer
from augment.cli import parser_of, run_command
from augment.errors import AuthStop
from augment.remote_batches import RemoteError
from llmrec_pl.errors import AugmentationError, ConfigError
from tests.augment.batch_job import KEY, USERS
from tests.augment.batch_server import (
    Fault,
    answered,
    refused,
    response,
)

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


def test_an_answer_to_a_lost_and_released_part_is_still_taken_and_charged(job, tmp_path):
    job.build()
    job.batch("submit")
    lines = [json.dumps(answered(n, asked)) for n, asked in enumerate(job.asked())]
    job.batch("discard", "--lost", job.files[0].stem)
    run_command("unknown", ["release", str(job.store), "--all"])
    assert job.states == {"PLANNED": USERS}
    job.batch("ingest", answer_file(tmp_path / "found.jsonl", lines))
    assert job.states == {"DONE": USERS}
    assert job.ledger.spent_pusd > 0
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


def test_nor_is_one_that_waits_for_the_queue(job, tmp_path, account):
    account.status = "failed"
    account.errors = [{"code": "token_limit_exceeded", "message": "Enqueued token limit reached"}]
    job.all_the_way()
    assert job.parts == ["uploaded"]
    lines = [json.dumps(answered(n, asked)) for n, asked in enumerate(job.asked())]
    job.batch("ingest", answer_file(tmp_path / "some.jsonl", lines[:2]))
    account.status, account.errors = "completed", []
    with pytest.raises(AugmentationError, match="pay twice"):
        job.batch("submit")
    assert job.posts("POST", "/batches") == 1


@pytest.mark.parametrize("action", [["submit"], ["poll", "--wait"]])
def test_a_part_that_cannot_be_submitted_does_not_keep_the_others(
    job, tmp_path, action, monkeypatch
):
    monkeypatch.setattr(batch_wait, "PAUSES", (0.1, 1.0))
    job.build("--max-lines", "6")
    lines = [json.dumps(answered(n, asked)) for n, asked in enumerate(job.asked(job.files[0]))]
    job.batch("ingest", answer_file(tmp_path / "some.jsonl", lines[:2]))
    with pytest.raises(AugmentationError, match="pay twice"):
        job.batch(*action)
    assert job.parts == ["built", "created" if action == ["submit"] else "ingested"]


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
    page = Path(__file__).parents[3] / "docs" / "batch.md"
    for action in re.findall(r"`batch (\w+)", page.read_text(encoding="utf-8")):
        with pytest.raises(SystemExit) as ended:
            parser_of("batch").parse_args([action, "--help"])
        assert ended.value.code == 0
