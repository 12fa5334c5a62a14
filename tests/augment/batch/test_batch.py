"""Requests as files through a Batch API: the usual way, and what it costs."""

from __future__ import annotations

import hashlib
from base64 import b32decode

import pytest

from augment.cli import run_command
from augment.errors import BudgetStop
from augment.store.claims import unpack
from llmrec_pl.errors import ConfigError
from tests.augment.batch_job import KEY, KEY_ENV, USERS, Job
from tests.augment.batch_server import (
    answered,
)

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


def test_without_a_cap_money_is_still_counted(job):
    job.build()
    job.batch("discard", job.files[0].stem)
    job.batch("build", "--no-cap")
    assert job.ledger.cap_pusd is None
    assert job.ledger.reserved_pusd > 0
    job.batch("submit")
    job.batch("poll")
    assert job.ledger.spent_pusd > 0
    with pytest.raises(SystemExit):
        job.batch("build", "--no-cap", "--max-usd", "1")


def test_a_build_does_not_undo_a_budget_that_was_set_since(job):
    job.content["max_usd"] = 2
    job.write()
    job.batch("build", "--max-lines", "4")
    assert job.ledger.cap_pusd == 2 * 10**12
    run_command("budget", ["set", "5", str(job.store)])
    job.batch("build")
    assert job.ledger.cap_pusd == 5 * 10**12


def test_building_asks_no_server(job, server):
    job.content["provider"]["structured"] = "auto"
    job.write()
    with pytest.raises(ConfigError, match="structured=json_schema"):
        job.build()
    assert server.posts == []
    assert job.account.calls == []
