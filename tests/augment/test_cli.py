"""The commands as a person types them, in this process, against heuristics and a toy server."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from augment.budget import read_ledger, recompute
from augment.cli import COMMANDS, main
from augment.config import load_config
from augment.status import read_status
from augment.store import Store, open_readonly
from llmrec_pl.errors import ConfigError
from tests.augment.fault_server import FaultServer
from tests.augment.films import write_films

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs" / "augment").glob("*.yaml"))
KEY = "sk-canary-5f0c9e7d1b2a4"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working directory with a data set `films` and a config for it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    write_films(tmp_path / "films")
    config = {
        "dataset": "films",
        "store": "store",
        "out": "out",
        "provider": {"name": "heuristic", "embed_model": "hashing-256", "concurrency": 4},
        "tasks": {"pairs": {"pool": "random", "n_candidates": 5}},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return tmp_path


def call(*arguments):
    """Run a command; returns its status."""
    try:
        main([str(a) for a in arguments])
    except SystemExit as leave:
        return leave.code
    return 0


def ask(server, *more):
    """Run against a server, as with OpenAI."""
    form = "provider.structured=json_schema"
    own = ["--base-url", server.url, "--set", form, "--embed-model", "text-embedding-3-small"]
    return call("run", "--config", "c.yaml", "--provider", "openai", "--model", "gpt-4o-mini",
                *own, *more)  # fmt: skip


def everything_written(folder, capsys):
    said = capsys.readouterr()
    files = b"".join(p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file())
    return (said.out + said.err).encode() + files


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


# A run with a model ------------------------------------------------------------------------


def test_a_run_that_costs_money_needs_a_budget(place, capsys):
    with FaultServer() as server:
        assert ask(server) == 1
        assert "--max-usd" in capsys.readouterr().err
        assert ask(server, "--model", "nobody-1", "--max-usd", "1") == 1
        assert "no price is known for model 'nobody-1'" in capsys.readouterr().err
        assert not server.posts


def test_a_missing_key_is_named_by_its_variable(place, monkeypatch, capsys):
    monkeypatch.delenv("OPENAI_API_KEY")
    with FaultServer() as server:
        assert ask(server, "--max-usd", "1") == 1
        assert not server.posts
    assert "OPENAI_API_KEY" in capsys.readouterr().err


def test_a_refused_key_stops_at_once_and_is_never_shown(place, capsys):
    with FaultServer(["unauthorized"]) as server:
        assert ask(server, "--max-usd", "1") == 5
        assert 1 <= len(server.posts) <= 4
    assert KEY.encode() not in everything_written(place, capsys)


def test_a_budget_stops_before_it_is_broken_and_a_larger_one_resumes(place, capsys):
    with FaultServer() as server:
        assert ask(server, "--max-usd", "0.0008", "--concurrency", "64") == 3
        prompt, completion = server.bill
        assert 0 < prompt * 150_000 + completion * 600_000 <= 800_000_000
        assert "budget set" in capsys.readouterr().err
        before = len(server.posts)
        assert call("budget", "set", "1", "store") == 0
        assert ask(server) == 0, "the budget of the store holds for later runs"
        chat = [post for post in server.posts if "chat" in post["path"]]
        assert len(chat) == 12 + 12 + 20, "nothing was asked twice"
        assert before < len(server.posts)
    _audited()
    assert call("cost", "store") == 0
    assert KEY.encode() not in everything_written(place, capsys)


def _audited():
    db = open_readonly("store")
    try:
        assert read_ledger(db) == recompute(db)
    finally:
        db.close()


def test_a_budget_set_by_hand_outlives_the_config_until_that_changes(place):
    with FaultServer() as server:
        first = ["--set", "max_usd=0.0008"]
        assert ask(server, *first) == 3
        assert call("budget", "set", "1", "store") == 0
        assert ask(server, *first) == 0
        assert read_status("store").ledger.cap_pusd == 10**12
        assert ask(server, "--set", "max_usd=2") == 0
        assert read_status("store").ledger.cap_pusd == 2 * 10**12


def test_a_changed_price_touches_no_old_attempt(place):
    def priced(usd):
        row = {"model": "gpt-4o-mini", "tier": "sync", "input": usd, "output": usd}
        text = ", ".join(f'{k} = "{v}"' for k, v in row.items())
        Path("prices.toml").write_text(
            f'price = [{{ {text}, valid_from = 2024-01-01, source = "mine" }}]', encoding="utf-8"
        )
        return ["--max-usd", "1", "--set", "provider.prices=prices.toml", "--no-export"]

    with FaultServer() as server:
        assert ask(server, *priced("1"), "--only", "profiles") == 0
        spent = read_status("store").ledger.spent_pusd
        assert spent == sum(server.bill) * 10**6
        assert ask(server, *priced("3"), "--only", "attributes") == 0
        assert read_status("store").ledger.spent_pusd - spent == (
            3 * (sum(server.bill) * 10**6 - spent)
        )
    _audited()


def test_without_a_cap_money_is_still_counted(place, capsys):
    with FaultServer() as server:
        assert ask(server, "--max-usd", "0.000001") == 3
        assert ask(server, "--no-cap", "--only", "pairs") == 0
        assert read_status("store").ledger.cap_pusd is None
        assert read_status("store").ledger.spent_pusd > 10**6
        assert ask(server, "--no-cap", "--max-usd", "1") == 2
        assert ask(server, "--no-cap", "--model", "unheard-of", "--only", "profiles") == 0
    _audited()


# Identity ----------------------------------------------------------------------------------


def chats(server):
    return sum("chat" in post["path"] for post in server.posts)


def test_what_is_known_is_never_asked_again(place):
    with FaultServer() as server:
        assert ask(server, "--max-usd", "1") == 0
        assert chats(server) == 44
        write_films(place / "renumbered", order=5)
        assert ask(server, "--dataset", "renumbered") == 0
        assert chats(server) == 44, "another numbering asks the same"
        write_films(place / "more", users=15)
        assert ask(server, "--dataset", "more") == 0
        assert chats(server) == 44 + 2 * 3, "only the three new users are asked about"
        hot = ["--set", "tasks.pairs.temperature=0.9", "--only", "pairs"]
        assert ask(server, *hot) == 0
        assert chats(server) == 50 + 12, "another temperature is another question"
        for change in ("seed=7", "max_tokens=80"):
            assert ask(server, "--set", f"tasks.pairs.{change}", "--only", "pairs") == 0
        assert chats(server) == 62 + 24
        assert ask(server) == 0
        assert chats(server) == 86, "the old answers are still there"
    pairs = [task for task in read_status("store").tasks if task.kind == "pairs"]
    assert [task.states for task in pairs] == [{"done": n} for n in (12, 12, 15, 12, 12, 12)], (
        "side by side"
    )
