"""The commands as a person types them, in this process, against heuristics and a toy server."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from cli_calls import ask, call

from augment.cli import COMMANDS
from augment.config import load_config
from augment.status import read_status
from augment.store import Store, open_readonly
from llmrec_pl.errors import ConfigError
from tests.augment.fault_server import FaultServer

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs" / "augment").glob("*.yaml"))

# Help and usage ----------------------------------------------------------------------------


def test_help_is_quick_to_load_and_every_command_has_examples():
    code = """
import contextlib, io, json, sys
from augment.cli import COMMANDS, main
found = {}
for name in COMMANDS:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([name, "--help"])
    heavy = [m for m in ("torch", "openai", "polars", "lightning") if m in sys.modules]
    found[name] = [heavy, out.getvalue()]
print(json.dumps(found))
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name, (heavy, text) in json.loads(said.stdout).items():
        assert not heavy, f"{name} --help loads {heavy}"
        assert f"python -m augment {name}" in text.split("Examples:")[1], name


def test_the_overview_names_every_command(capsys):
    assert call() == call("--help") == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"(?m)^  {name} ", text) for name in COMMANDS)


@pytest.mark.parametrize("package", ["augment", "llmrec_pl"])
def test_the_overview_may_be_cut_by_head(package):
    command = [sys.executable, "-m", package, "--help"]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer) as closed:
        left = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True)
    assert (left.returncode, left.stderr) == (0, "")


def test_usage_errors_leave_with_2(capsys):
    assert call("rum") == 2
    assert call("run") == 2
    assert call("budget") == 2
    assert call("run", "--config", "c.yaml", "--api-key", "x") == 2
    assert "unknown command 'rum'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--config", "none.yaml"], "no config file"),
        (["run", "--config", "c.yaml", "--only", "pears"], "unknown task 'pears'"),
        (["run", "--config", "c.yaml", "--dataset", "nowhere"], "nowhere"),
        (["run", "--config", "c.yaml", "--pool", "no.parquet"], "python -m llmrec_pl predict"),
        (["run", "--config", "c.yaml", "--set", "tasks.pairs.draw=1"], "did you mean 'draws'?"),
        (["run", "--config", "c.yaml", "--set", "provider.x=1"], "known are name, label"),
        (["run", "--config", "broken.yaml"], "is not valid YAML in line"),
        (["run", "--config", "empty.yaml"], "`dataset` is missing; `store` is missing; `out` is"),
        (["status"], "which store?"),
        (["status", "nothing"], "augment run"),
        (["cost", "nothing", "--by", "weather"], "cannot group by 'weather'"),
        (["budget", "set", "much", "nothing"], "'much'"),
        (["unknown", "release", "store"], "--all"),
        (["run", "--config", "c.yaml", "--max-reject-rate", "7"], "is a share in [0, 1], got 7"),
    ],
)
def test_errors_are_one_line_with_a_remedy(place, capsys, arguments, said):
    (place / "broken.yaml").write_text("provider: openai\ntasks: [\n", encoding="utf-8")
    (place / "empty.yaml").write_text("", encoding="utf-8")
    assert call(*arguments) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert said in error


# A run without a model ---------------------------------------------------------------------


def test_from_nothing_to_an_export_and_again_for_free(place, capsys):
    assert call("run", "--config", "c.yaml") == 0
    first = capsys.readouterr()
    assert "--data.augmentation out" in first.out
    assert (place / "out" / "manifest.json").is_file()
    calls = read_status("store").ledger, len(_attempts())
    assert call("run", "--config", "c.yaml", "--no-export") == 0
    assert (read_status("store").ledger, len(_attempts())) == calls
    by_kind = {task.kind: task for task in read_status("store").tasks}
    assert by_kind["pairs"].states == {"done": 12}
    assert by_kind["attributes"].states == {"done": 20}


def _attempts(store="store"):
    db = open_readonly(store)
    try:
        return db.execute("SELECT id, state FROM attempt").fetchall()
    finally:
        db.close()


def test_only_runs_the_tasks_named(place):
    assert call("run", "--config", "c.yaml", "--only", "profiles, attributes", "--no-export") == 0
    assert [task.kind for task in read_status("store").tasks] == ["profiles", "attributes"]


def test_a_dry_run_opens_no_socket_and_writes_nothing(place, monkeypatch, capsys):
    def refuse(*_, **__):
        raise AssertionError("a socket was opened")

    before = sorted(place.rglob("*"))
    monkeypatch.setattr(socket, "socket", refuse)
    dry = ["run", "--config", "c.yaml", "--provider", "openai", "--dry-run"]
    assert call(*dry, "--embed-model", "text-embedding-3-small") == 0
    assert "in all $" in capsys.readouterr().out
    assert sorted(place.rglob("*")) == before


def test_planning_never_asks_a_server(place, capsys):
    with FaultServer() as server:
        plan = ["plan", "--config", "c.yaml", "--provider", "openai", "--base-url", server.url]
        assert call(*plan) == 1
        assert "provider.structured" in capsys.readouterr().err
        assert call(*plan, "--set", "provider.structured=json_object") == 0
        assert not server.posts


def test_commands_on_a_finished_store(place, capsys):
    assert call("plan", "--config", "c.yaml", "--only", "profiles") == 0
    assert read_status("store").tasks[0].states == {"planned": 12}
    assert call("run", "--config", "c.yaml", "--no-export") == 0
    capsys.readouterr()
    for command in ("cost", "revalidate", "retry-failed", "doctor"):
        assert call(command, "store") == 0, command
    assert call("cost", "store", "--audit") == 0
    assert call("unknown", "list", "store", "--json") == 0
    assert call("budget", "set", "5.50", "store") == 0
    assert call("budget", "show", "--config", "c.yaml") == 0
    said = capsys.readouterr().out
    assert "the sum of its attempts" in said
    assert "budget $5.50; spent $0.00, reserved $0.00, left $5.50" in said
    assert call("cost", "store", "--audit", "--json") == 0
    assert json.loads(capsys.readouterr().out)["cap_pusd"] == 5_500_000_000_000
    assert call("status", "store", "--json") == 0
    assert json.loads(capsys.readouterr().out)["ledger"]["cap_pusd"] == 5_500_000_000_000


def test_an_edited_ledger_fails_the_audit_and_the_doctor(place, capsys):
    assert call("run", "--config", "c.yaml", "--no-export") == 0
    with Store("store") as store:
        store.do(lambda db: db.execute("UPDATE ledger SET spent_pusd = 7").rowcount)
    assert call("cost", "store", "--audit") == 1
    assert "add up to" in capsys.readouterr().err
    assert call("doctor", "store", "--json") == 1
    checks = {c["name"]: c["verdict"] for c in json.loads(capsys.readouterr().out)}
    assert checks["ledger"] == "fail"
    assert checks["main.sqlite"] == "ok"


def test_a_second_process_is_turned_away_while_status_may_look(place, capsys):
    with Store("store", create=True, spool_size=65536):
        assert call("run", "--config", "c.yaml") == 75
        assert "in use by process" in capsys.readouterr().err
        assert call("status", "store") == 0
        assert "in use by process" in capsys.readouterr().out


def test_a_run_leaves_the_export_of_another_store_alone(place, capsys):
    assert call("run", "--config", "c.yaml", "--limit", "3") == 0
    before = (place / "out" / "manifest.json").read_bytes()
    assert call("run", "--config", "c.yaml", "--limit", "4", "--store", "other") == 1
    assert "is not of store 'other'; choose another `--out`" in capsys.readouterr().err
    assert not (place / "other").exists(), "before anything is asked"
    assert (place / "out" / "manifest.json").read_bytes() == before
    assert call("run", "--config", "c.yaml", "--limit", "4", "--store", "other", "--no-export") == 0
    assert call("export", "--config", "c.yaml", "--store", "other", "--overwrite") == 0
    assert "4 edges and vectors of " in capsys.readouterr().out


def test_nothing_to_train_on_is_said(place, capsys):
    with FaultServer([{"do": "ok", "content": "I like them all."}]) as server:
        free = ["--set", "provider.free=true", "--no-cap"]
        assert ask(server, "--limit", "2", *free) == 0
    said = capsys.readouterr().out
    assert "0 edges and vectors of no field written to out" in said
    assert "nothing to train on yet" in said
    assert "llmrec_pl fit" not in said


def test_a_missing_encoder_is_said_before_anything_is_sent(place, capsys, monkeypatch):
    def missing():
        raise ConfigError("the weights are not installed; choose another `--encoder`.")

    monkeypatch.setattr("llmrec_pl.data.encoders.text.minilm", missing)
    with FaultServer() as server:
        assert ask(server, "--max-usd", "1", "--embed-model", "minilm") == 1
        assert not server.posts
    error = capsys.readouterr().err
    assert "the weights are not installed. Install it with" in error
    assert "`--embed-model hashing-256`" in error


def test_only_a_call_of_unknown_outcome_can_be_released(place, capsys):
    assert call("run", "--config", "c.yaml", "--no-export") == 0
    assert call("unknown", "release", "store", "--id", "17") == 1
    assert "has the id 17; `python -m augment unknown list store`" in capsys.readouterr().err


def test_init_writes_a_config_that_runs(place, capsys):
    words = "book,author,category,read"
    assert call("init", "films", "--out", "made.yaml", "--words", words) == 0
    config = load_config(["made.yaml"])
    assert (config.domain.categories, config.domain.creators) == ("categories", "authors")
    assert call("init", "films", "--out", "made.yaml") == 1, "nothing is overwritten"
    run = ["run", "--config", "made.yaml", "--pool", "random", "--embed-model", "hashing-256"]
    assert call(*run, "--store", "other", "--out", "made") == 0


# The shipped configs -----------------------------------------------------------------------


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_shipped_configs_run_on_films(place, path):
    small = ["--dataset", "films", "--store", "s", "--out", "o", "--pool", "random"]
    small += ["--set", "tasks.pairs.n_candidates=5", "--embed-model", "hashing-256"]
    if load_config([path]).provider.name == "heuristic":
        assert call("run", "--config", path, *small) == 0
    else:
        assert call("estimate", "--config", path, *small) == 0


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_one_line_leads_from_heuristics_to_a_model(path, tmp_path):
    text = path.read_text(encoding="utf-8")
    if "\nprovider: heuristic" in text:
        changed = tmp_path / "c.yaml"
        changed.write_text(text.replace("provider: heuristic", "provider: openai", 1), "utf-8")
        config = load_config([changed])
        assert (config.provider.key_env, config.provider.label) == ("OPENAI_API_KEY", "openai")


def test_numbers_stay_names_and_later_options_win():
    config = load_config(
        [ROOT / "configs" / "augment" / "ml-100k.yaml"],
        ['provider.chat_model="4.1"', "tasks.pairs.temperature=0.8"],
    )
    assert config.provider.chat_model == "4.1"
    assert config.tasks.pairs.temperature == 0.8
