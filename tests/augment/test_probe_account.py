"""The question what a server can do is a call like any other: reserved, journalled, charged."""

import contextlib
import json
import signal

import pytest
import yaml

from augment.budget import read_ledger, recompute
from augment.cli import main
from augment.store import Store, open_readonly
from tests.augment.ask import ask
from tests.augment.command import Command
from tests.augment.drive import plain_spec, plan_all
from tests.augment.fault_replies import Step, error
from tests.augment.fault_server import FaultServer
from tests.augment.lives import kill, until


def attempts(store):
    with contextlib.closing(open_readonly(store)) as db:
        assert read_ledger(db) == recompute(db)
        rows = db.execute("SELECT lane, state, outcome, raw IS NOT NULL FROM attempt ORDER BY id")
        return read_ledger(db), [row for row in rows if row[0] == "probe"]


def refuses_schemas(_, body):
    form = body.get("response_format", {}).get("type")
    return error(400, "invalid_value", "no schemas") if form == "json_schema" else Step()


def test_it_is_in_the_ledger_and_its_reply_is_kept(tmp_path):
    with FaultServer(refuses_schemas) as server:
        command = Command(tmp_path, server, provider={"structured": "auto"})
        assert command("run")[0] == 0
        prompt, completion = server.bill
    ledger, probes = attempts(command.store)
    assert ledger.spent_pusd == prompt * 150_000 + completion * 600_000
    assert probes == [
        ("probe", 2, "refused_input", 0),  # a schema
        ("probe", 1, "ok", 1),  # an object
    ]


def test_cost_shows_it_beside_the_tasks(tmp_path, capsys):
    with FaultServer() as server:
        command = Command(tmp_path, server, provider={"structured": "auto"})
        assert command("run")[0] == 0
    main(["cost", str(command.store), "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert {row["task"]: row["calls"] for row in rows} == {"pairs": 12, "probe": 1}
    assert sum(row["spent_pusd"] for row in rows) == attempts(command.store)[0].spent_pusd
    main(["cost", str(command.store)])
    assert "probe" in capsys.readouterr().out


def test_a_budget_too_small_for_it_sends_nothing(tmp_path):
    with FaultServer() as server:
        command = Command(tmp_path, server, provider={"structured": "auto"})
        values = yaml.safe_load(command.config.read_text()) | {"max_usd": 0.000001}
        command.config.write_text(yaml.safe_dump(values))
        assert command("run")[0] == 3
        assert server.posts == []


@pytest.mark.parametrize("answered", [False, True])
def test_after_a_kill_it_is_listed_or_settled(tmp_path, answered):
    with FaultServer([Step(latency=0 if answered else 60), Step(latency=60)]) as server:
        command = Command(tmp_path, server, provider={"structured": "auto"})
        fault = {"AUGMENT_FAULT": "spooled:1"} if answered else {}
        process = command.start("run", **fault)
        if answered:
            assert command.end(process)[0] == -signal.SIGKILL
        else:
            until(lambda: server.posts, process)
            kill(process)
    before, _ = attempts(command.store)
    assert before.reserved_pusd > 0
    with FaultServer() as server:
        values = yaml.safe_load(command.config.read_text())
        values["provider"]["base_urls"] = [server.url]
        command.config.write_text(yaml.safe_dump(values))
        assert command("run")[0] == 0
    ledger, probes = attempts(command.store)
    assert probes[0][1] == (1 if answered else 3)
    assert (ledger.reserved_pusd > 0) == (not answered)


def test_a_follow_up_that_another_task_had_planned_is_sent_by_who_needs_it(tmp_path):
    roomy = plain_spec(params={"temperature": 0.6, "max_tokens": 128})
    with Store(tmp_path / "s", create=True, spool_size=2**20) as store:
        plan_all(store, roomy, 1)

    def script(_, body):
        return Step() if body["max_tokens"] == 128 else Step(content="", finish="length")

    with FaultServer(script) as server:
        asked = ask(tmp_path / "s", server, plain_spec(), n=1)
    assert asked.states == {"FOLLOWED": 1, "DONE": 1}
    assert len(server.posts) == 2
