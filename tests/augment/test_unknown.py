"""What a person may decide about calls whose outcome nobody knows, and about quarantine."""

import pytest
from store_rows import row_of, spec_of

from augment.budget import read_ledger, recompute
from augment.cli import main
from augment.store import (
    AttemptState,
    RequestChange,
    Settlement,
    State,
    add_spec,
    plan,
    reserve,
)
from augment.store.claims import claim, count_open
from augment.store.reopen import reopen
from augment.store.unknown import list_unknown, release, retry
from tests.augment.fault_server import FaultServer
from tests.augment.films import write_films


def lose(store, run, item, state, bound=100):
    """Send a request and lose its reply."""
    attempt = store.do(
        lambda db: reserve(
            db, run=run, lane="sync", requests=[item.id], bound_pusd=bound, price=None, now=7
        )
    )
    change = RequestChange(item.id, item.key, state, unknowns=1, code="ambiguous")
    store.settle(
        Settlement(attempt, AttemptState.UNKNOWN, "ambiguous", 9, [change], detail="reset")
    ).result()
    return attempt


@pytest.fixture
def lost(planned):
    """Two calls lost: one is held, the other one planned again; gives (store, spec, attempts)."""
    store, spec, run = planned
    first, second = store.do(lambda db: claim(db, spec, 0, 2))
    attempts = [lose(store, run, first, State.UNKNOWN), lose(store, run, second, State.PLANNED, 30)]
    return store, spec, attempts


def test_the_list_names_what_was_lost_and_who_wants_it(lost):
    store, _, attempts = lost
    found = store.do(list_unknown)
    assert [call.attempt for call in found] == attempts
    assert [(c.reserved_pusd, c.held, c.requests, c.why) for c in found] == [
        (100, 1, 1, "reset"),
        (30, 0, 1, "reset"),
    ]
    assert [call.entities for call in found] == [[(0, 0)], [(1, 0)]]


def test_retry_plans_what_is_held_and_keeps_its_reservation(lost):
    store, spec, _ = lost
    assert store.do(lambda db: count_open(db, spec)) == 19
    assert store.do(retry) == 1
    assert store.do(lambda db: count_open(db, spec)) == 20
    assert store.do(read_ledger).reserved_pusd == 130
    assert len(store.do(list_unknown)) == 2, "the money may still be spent"
    assert store.do(retry) == 0


def test_release_frees_the_chosen_reservation_and_plans_what_is_held(lost):
    store, spec, attempts = lost
    assert store.do(lambda db: release(db, [attempts[0]])) == (1, 100)
    assert store.do(read_ledger) == store.do(recompute)
    assert store.do(read_ledger).reserved_pusd == 30
    assert store.do(lambda db: count_open(db, spec)) == 20
    assert [call.attempt for call in store.do(list_unknown)] == [attempts[1]]
    assert store.do(release) == (1, 30)
    assert store.do(release) == (0, 0), "what is released is released once"
    assert store.do(read_ledger).reserved_pusd == 0
    assert store.do(read_ledger) == store.do(recompute)


def test_a_released_request_may_be_lost_as_often_as_before(lost):
    store, spec, attempts = lost
    store.do(lambda db: release(db, attempts))
    assert [item.unknowns for item in store.do(lambda db: claim(db, spec, 0, 2))] == [0, 0]


def test_a_late_reply_to_a_released_call_changes_no_money(lost):
    store, _, attempts = lost
    store.do(lambda db: release(db, attempts))
    late = Settlement(attempts[0], AttemptState.OK, "ok", 11, [], cost_pusd=50, raw=b"{}")
    assert store.settle(late).result() is False
    assert store.do(read_ledger) == store.do(recompute)


@pytest.fixture
def quarantined(planned):
    """Requests 1 to 4 in quarantine, for two reasons, and one of another task."""
    store, spec, _ = planned
    other, _ = store.do(lambda db: add_spec(db, spec_of("profiles"), 0))
    store.do(lambda db: plan(db, other, [row_of(99)]))

    def set_aside(db):
        db.execute(
            "UPDATE request SET state = 3, tries = 5, rejects = 3, last_code = "
            "CASE WHEN id <= 2 OR spec = ? THEN 'truncated' ELSE 'refused' END "
            "WHERE id <= 4 OR spec = ?",
            (other, other),
        )

    store.do(set_aside)
    return store, spec


@pytest.mark.parametrize(
    ("codes", "kinds", "opened"),
    [
        ((), (), {"truncated": 3, "refused": 2}),
        (("refused",), (), {"refused": 2}),
        (("truncated",), ("profiles",), {"truncated": 1}),
        (("bad_json",), (), {}),
    ],
)
def test_quarantine_is_opened_by_reason_and_task_with_fresh_counts(
    quarantined, codes, kinds, opened
):
    store, spec = quarantined
    before = store.do(lambda db: count_open(db, spec))
    assert store.do(lambda db: reopen(db, codes, kinds)) == opened
    now = store.do(lambda db: claim(db, spec, 0, 99))
    assert all((item.tries, item.rejects) == (0, 0) for item in now)
    mine = sum(opened.values()) - (1 if "truncated" in opened else 0)
    assert len(now) - before == mine


# As commands -------------------------------------------------------------------------------


@pytest.fixture
def ask(tmp_path, monkeypatch, capsys):
    """Runs the profiles task on twelve users against a server, `unknown` and `retry-failed`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOY_KEY", "toy-key-1234")
    write_films(tmp_path / "films")

    def run(command, *arguments, url="http://127.0.0.1:9/v1"):
        if command == "run":
            own = ["--provider", "openai", "--base-url", url, "--key-env", "TOY_KEY"]
            form = ["--set", "provider.structured=json_schema", "--max-usd", "1"]
            places = [f"--{name}={name}" for name in ("store", "out")]
            config = tmp_path / "c.yaml"
            config.write_text("{}", encoding="utf-8")
            arguments = ("--config", str(config), "--dataset", "films", *places, *own, *form,
                         "--only", "profiles", "--no-export", *arguments)  # fmt: skip
        try:
            main([command, *arguments])
            status = 0
        except SystemExit as leave:
            status = leave.code
        return status, capsys.readouterr().out

    return run


def test_a_lost_call_is_listed_by_name_and_asked_again_when_told(ask):
    with FaultServer(["reset", "ok"]) as server:
        ask("run", "--ambiguous", "hold", url=server.url)
        posts = len(server.posts)
        _, listed = ask("unknown", "list", "store")
        assert "user u" in listed
        assert "1 of 1" in listed
        assert ask("run", url=server.url)[0] == 0
        assert len(server.posts) == posts, "it waits for a person"
        assert ask("unknown", "retry", "store")[0] == 0
        assert ask("run", url=server.url)[0] == 0
        assert len(server.posts) == posts + 1
        assert "1 calls released" in ask("unknown", "release", "store", "--all")[1]
        assert "no call of unknown outcome" in ask("unknown", "list", "store")[1]
        assert ask("cost", "store", "--audit")[0] == 0


def test_what_was_refused_is_asked_again_when_told(ask):
    with FaultServer(["refusal", "ok"]) as server:
        ask("run", "--max-reject-rate", "1", url=server.url)
        posts = len(server.posts)
        assert "0 requests" in ask("retry-failed", "store", "--code", "truncated")[1]
        assert "1 requests" in ask("retry-failed", "store", "--code", "refused")[1]
        assert ask("run", url=server.url)[0] == 0
        assert len(server.posts) == posts + 1
