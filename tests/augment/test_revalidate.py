"""Validation run again over the journal: no network, no money, raw replies untouched."""

import json
import socket

import pytest

from augment.budget import read_ledger, recompute
from augment.judge import Policy, judge_reply
from augment.revalidate import BLOCK, Revalidator
from augment.specs import Verdict
from augment.store import State, Store, add_spec, plan, reserve
from augment.store.claims import claim, requests_of
from augment.store.reopen import reopen
from augment.validate import validate
from tests.augment.drive import plain_row, plain_spec


def pair(most, least):
    return json.dumps({"most_liked": most, "least_liked": least})


def raw_of(content):
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 50, "completion_tokens": 10}
    return json.dumps({"choices": [choice], "usage": usage}).encode()


class Journal:
    """A store whose requests were answered with given contents, through the real judge."""

    def __init__(self, store, n=6, **spec):
        self.store, self.spec = store, plain_spec(**spec)
        self.spec_id, _ = store.do(lambda db: add_spec(db, self.spec, 0))
        rows = [plain_row(self.spec, i) for i in range(n)]
        store.do(lambda db: plan(db, self.spec_id, rows))
        self.run = store.do(lambda db: db.execute("INSERT INTO run(t0) VALUES (0)").lastrowid)

    def answer(self, request, *contents):
        for content in contents:
            attempt = self.store.do(
                lambda db: reserve(
                    db,
                    run=self.run,
                    lane="sync",
                    requests=[request],
                    bound_pusd=9,
                    price=None,
                    now=0,
                )
            )
            items = self.store.do(lambda db, attempt=attempt: requests_of(db, attempt))
            self.store.settle(
                judge_reply(
                    self.spec, items, raw_of(content), attempt=attempt, price=None, reserved=9,
                    policy=Policy(), now=0,
                )
            ).result()  # fmt: skip

    def look(self, sql, *values):
        return self.store.do(lambda db: db.execute(sql, values).fetchall())

    def states(self):
        rows = self.look("SELECT id, state FROM request ORDER BY id")
        return {number: State(state).name for number, state in rows}

    def results(self):
        rows = self.look("SELECT request, value FROM result ORDER BY 1")
        return {number: json.loads(value) for number, value in rows}


@pytest.fixture
def journal(store):
    journal = Journal(store)
    journal.answer(1, pair(3, 7))
    journal.answer(2, pair(1, 2))
    journal.answer(3, "no idea", "none", "nothing")  # quarantined
    journal.answer(4, "no idea", pair(5, 6))
    return journal


def never_first(spec, raw, body, context):
    """A stricter check: the first candidate cannot be the favourite."""
    verdict = validate(spec, raw, body, context)
    if verdict.accepted and verdict.value["most_liked"] == 1:
        return Verdict("first_again", detail="position bias")
    return verdict


def anything(spec, raw, body, context):
    """A laxer check."""
    return Verdict("accepted", {"most_liked": 1, "least_liked": 2})


def only_of(number):
    """A check that accepts whatever answers one plain request itself, not a follow-up."""

    def judge(spec, raw, body, context):
        accepts = [m["content"] for m in body["messages"]] == [f"ask {number - 1}"]
        return (anything if accepts else validate)(spec, raw, body, context)

    return judge


def second(kind, prompt_set):
    return f"{kind}/{prompt_set}/2"


def test_the_same_check_changes_nothing(journal):
    before = journal.states(), journal.results(), journal.look("SELECT * FROM attempt")
    found = Revalidator(journal.store).run()
    assert (journal.states(), journal.results(), journal.look("SELECT * FROM attempt")) == before
    assert (found.replies, found.accepted, found.changed, sum(found.rejected.values())) == (
        7,
        0,
        0,
        0,
    )


@pytest.mark.parametrize(("repay", "state"), [(False, "QUARANTINED"), (True, "PLANNED")])
def test_a_stricter_check_takes_results_back_without_a_call(journal, monkeypatch, repay, state):
    monkeypatch.setattr(socket, "socket", None)
    raws = journal.look("SELECT id, raw, cost_pusd FROM attempt")
    found = Revalidator(journal.store, repay=repay, judge=never_first, name=second).run()
    assert found.rejected == {"first_again": 1}
    assert journal.states()[2] == state
    assert journal.results() == {
        1: {"most_liked": 3, "least_liked": 7},
        4: {"most_liked": 5, "least_liked": 6},
    }
    assert journal.look("SELECT id, raw, cost_pusd FROM attempt") == raws
    assert journal.store.do(read_ledger) == journal.store.do(recompute)
    verdicts = journal.look(
        "SELECT validator, code FROM verdict WHERE request = 2 ORDER BY validator"
    )
    assert verdicts == [("pairs/strict-1/1", "accepted"), ("pairs/strict-1/2", "first_again")]


def test_with_repay_it_is_asked_as_if_for_the_first_time(journal):
    Revalidator(journal.store, repay=True, judge=never_first, name=second).run()
    items = journal.store.do(lambda db: claim(db, journal.spec_id, 0, 99))
    assert [(i.id, i.tries, i.rejects) for i in items if i.id == 2] == [(2, 0, 0)]


def test_a_laxer_check_makes_results_of_what_was_paid_for(journal):
    found = Revalidator(journal.store, judge=anything, name=second).run()
    assert found.accepted == 1
    assert journal.states()[3] == "DONE"
    assert set(journal.results()) == {1, 2, 3, 4}
    assert journal.look("SELECT attempt FROM result WHERE request = 4") == [(7,)], (
        "a result that holds stays with the reply it came from"
    )


def test_a_follow_up_is_not_asked_once_its_question_is_answered(store):
    journal = Journal(store, params={"temperature": 0, "max_tokens": 64})
    journal.answer(1, "no idea")  # temperature 0: a repair ask is planned
    assert journal.states()[1] == "FOLLOWED"
    Revalidator(store, judge=anything, name=second).run()
    states = journal.states()
    assert (states[1], states[7]) == ("DONE", "QUARANTINED")
    assert journal.look("SELECT last_code FROM request WHERE id = 7") == [("not_needed",)]


@pytest.mark.parametrize("answers", [1, 2])
def test_nor_is_it_when_what_failed_is_opened_again(store, answers):
    journal = Journal(store, params={"temperature": 0, "max_tokens": 64})
    journal.answer(1, "no idea")
    if answers == 2:
        journal.answer(7, "still none")  # the repair ask fails too
    journal.answer(2, "no idea")
    journal.answer(8, "still none")
    Revalidator(store, judge=only_of(1), name=second).run()
    assert journal.states()[1] == "DONE"
    assert store.do(reopen) == {"bad_json": 1}
    assert {n: s for n, s in journal.states().items() if n > 6} == {7: "QUARANTINED", 8: "PLANNED"}


def test_a_check_that_fails_itself_costs_a_verdict_and_nothing_else(journal):
    def broken(*_):
        raise ZeroDivisionError("oops")

    before = journal.states(), journal.results()
    Revalidator(journal.store, judge=broken, name=second).run()
    codes = journal.look("SELECT DISTINCT code FROM verdict WHERE validator LIKE '%/2'")
    assert codes == [("internal_error",)]
    assert (journal.states(), journal.results()) == before


def test_more_than_one_block(tmp_path):
    with Store(tmp_path, create=True, spool_size=2**20) as store:
        journal = Journal(store, n=BLOCK + 3)
        journal.answer(BLOCK + 2, pair(1, 2))
        seen = []
        found = Revalidator(store, judge=never_first, name=second).run(seen.append)
        assert (seen, found.replies) == ([BLOCK, 3], 1)
        assert journal.states()[BLOCK + 2] == "QUARANTINED"
