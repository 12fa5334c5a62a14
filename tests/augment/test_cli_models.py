"""Runs with a model, at a toy server: budgets, keys, prices, and what is never asked again."""

from pathlib import Path

from cli_calls import KEY, ask, call, everything_written

from augment.budget import read_ledger, recompute
from augment.status import read_status
from augment.store import open_readonly
from tests.augment.fault_server import FaultServer
from tests.augment.films import write_films

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
