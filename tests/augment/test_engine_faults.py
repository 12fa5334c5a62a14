"""What a server can do to a run: each fault is accounted for, and nothing is lost or repaid."""

import asyncio
import time
from types import SimpleNamespace

import pytest
from ask import DEFAULTS, ask

from augment import engine
from augment.errors import StoreFullStop
from augment.store import AttemptState, Store
from tests.augment.drive import plain_spec, plan_all, work
from tests.augment.fault_replies import TRANSPORT_FAULTS, Step, limited
from tests.augment.fault_server import FaultServer

AMBIGUOUS = [f for f in TRANSPORT_FAULTS if f != "hang"]


def first(step, then="ok"):
    """Serve the first request with a step, all others with another."""
    return [step, then]


@pytest.mark.parametrize("fault", AMBIGUOUS)
def test_a_broken_transport_keeps_its_reservation_and_is_sent_at_most_once_more(tmp_path, fault):
    with FaultServer(first(fault)) as server:
        asked = ask(tmp_path / "s", server)
    assert asked.stop is None
    assert asked.states == {"DONE": 20}
    assert len(asked.posts) == 21
    assert asked.unknown == 1
    assert asked.ledger.reserved_pusd > 0


@pytest.mark.parametrize("page", ["html_502", "html_504"])
def test_a_proxy_s_page_may_hide_a_bill(tmp_path, page):
    with FaultServer(first(page)) as server:
        asked = ask(tmp_path / "s", server)
    assert (asked.states, asked.unknown) == ({"DONE": 20}, 1)


def test_a_key_whose_outcome_is_twice_unknown_is_held_for_a_person(tmp_path):
    with FaultServer(["reset"]) as server:
        asked = ask(tmp_path / "s", server, n=2)
    assert asked.states == {"UNKNOWN": 2}
    assert len(asked.posts) == 4


def test_a_server_that_never_answers_ends_at_the_deadline(tmp_path):
    with FaultServer(["hang", "hang", "ok"]) as server:
        begin = time.monotonic()
        asked = ask(tmp_path / "s", server, n=2, read_timeout=0.5, timeout=1.0)
    assert asked.states == {"DONE": 2}
    assert asked.unknown == 2
    assert time.monotonic() - begin < 6


def test_a_drip_is_cut_at_the_whole_deadline_while_others_go_on(tmp_path):
    with FaultServer(first({"do": "drip", "every": 0.3})) as server:
        begin = time.monotonic()
        asked = ask(tmp_path / "s", server, timeout=1.5, read_timeout=1.0)
    assert asked.states == {"DONE": 20}
    assert asked.unknown == 1
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    ("step", "code"),
    [
        ("html_200", "not_json"),
        ("empty_200", "empty_body"),
        ("cut_json", "bad_json"),
        ("no_choices", "no_choice"),
    ],
)
def test_a_200_that_says_nothing_is_kept_charged_and_asked_again(tmp_path, step, code):
    with FaultServer(first(step)) as server:
        asked = ask(tmp_path / "s", server)
    assert asked.states == {"DONE": 20}
    assert asked.verdicts == {code: 1, "accepted": 20}
    assert asked.raws == 21
    assert len(asked.posts) == 21


@pytest.mark.parametrize(
    ("step", "verdicts"),
    [
        (Step(body="[" * 100_000), {"not_json": 1}),
        (Step(body='{"a":' * 100_000), {"bad_json": 1}),
        (Step(body=r'{"model": "\ud800", "choices": []}'), {"no_choice": 1}),
        (Step(body=r'{"choices": [{"finish_reason": "\ud800"}]}'), {"empty_content": 1}),
        (Step(status=500, body=r'{"error": {"message": "\ud800"}}'), {}),
    ],
)
def test_a_reply_that_no_parser_or_store_takes_whole_does_not_end_the_run(tmp_path, step, verdicts):
    with FaultServer(first(step)) as server:
        asked = ask(tmp_path / "s", server)
    assert asked.states == {"DONE": 20}
    assert asked.verdicts == {**verdicts, "accepted": 20}
    assert len(asked.posts) == 21


@pytest.mark.parametrize("error", [StoreFullStop("no room"), ValueError("a fault of ours")])
def test_calls_in_flight_are_awaited_whatever_ends_the_run(tmp_path, monkeypatch, error):
    claims = []

    def claim(*args, **other):
        claims.append(args)
        if len(claims) > 1:
            raise error
        return original(*args, **other)

    original = engine.claim
    monkeypatch.setattr(engine, "claim", claim)
    with (
        FaultServer(lambda number, _: Step(latency=0.5 if number == 7 else 0)) as server,
        Store(tmp_path / "s", create=True, spool_size=2**20) as store,
    ):
        spec_id = plan_all(store, plain_spec(), 20)
        args = SimpleNamespace(**{**DEFAULTS, "url": [server.url], "concurrency": 2, "start": 2})
        with pytest.raises(type(error), match=str(error)):
            asyncio.run(work(store, plain_spec(), spec_id, args))
        states = store.do(lambda db: db.execute("SELECT state FROM attempt").fetchall())
    assert states == [(AttemptState.OK,)] * len(server.posts) == [(AttemptState.OK,)] * 8


def test_a_reply_without_usage_is_charged_its_bound(tmp_path):
    with FaultServer(["no_usage"]) as server:
        asked = ask(tmp_path / "s", server, n=3)
    assert asked.states == {"DONE": 3}
    assert asked.ledger.reserved_pusd == 0
    assert asked.ledger.spent_pusd > 0


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ('{"most_liked": 1, "least_liked": 2', "bad_json"),
        ('```json\n{"most_liked": 1, "least_liked": 2}\n```', "bad_json"),
        ('{"most_liked": 1, "least_liked": 2, "why": "x"}', "schema"),
        ('{"most_liked": "1", "least_liked": 2}', "not_integer"),
        ('{"most_liked": 1}', "schema"),
        ('{"most_liked": 11, "least_liked": 2}', "not_candidate"),
        ('{"most_liked": 0, "least_liked": 2}', "not_candidate"),
        ('{"most_liked": 3, "least_liked": 3}', "same_item"),
        ('{"most_liked": "one", "least_liked": "two"}', "not_integer"),
        ("", "empty_content"),
    ],
)
def test_a_poisoned_prompt_is_quarantined_and_the_others_go_on(tmp_path, content, code):
    def script(_, body):
        poisoned = body["messages"][0]["content"] == "ask 3"
        return Step(content=content) if poisoned else Step()

    with FaultServer(script) as server:
        asked = ask(tmp_path / "s", server)
    assert asked.states == {"DONE": 19, "QUARANTINED": 1}
    assert asked.verdicts == {code: 3, "accepted": 19}, "asked three times, each reply kept"
    assert asked.raws == 22
    assert len(asked.results) == 19


@pytest.mark.parametrize(("step", "code"), [("refusal", "refused"), ("filtered", "refused")])
def test_a_refusal_is_not_asked_again(tmp_path, step, code):
    with FaultServer(first(step)) as server:
        asked = ask(tmp_path / "s", server)
    assert asked.states == {"DONE": 19, "QUARANTINED": 1}
    assert asked.verdicts[code] == 1
    assert len(asked.posts) == 20


def test_a_filtered_prompt_is_quarantined_after_one_post(tmp_path):
    with FaultServer(first("azure_filtered")) as server:
        asked = ask(tmp_path / "s", server)
    assert asked.states == {"DONE": 19, "QUARANTINED": 1}
    assert len(asked.posts) == 20


def test_a_cut_answer_is_never_mended_but_asked_for_once_with_twice_the_room(tmp_path):
    def script(_, body):
        return (
            Step(content='{"most_liked": 1, "least_liked": 2}', finish="length")
            if body["max_tokens"] < 128
            else Step()
        )

    with FaultServer(script) as server:
        asked = ask(tmp_path / "s", server, n=1)
    assert [post["body"]["max_tokens"] for post in asked.posts] == [64, 128]
    assert asked.states == {"FOLLOWED": 1, "DONE": 1}
    assert asked.verdicts == {"truncated": 1, "accepted": 1}


@pytest.mark.parametrize(("ceiling", "rooms"), [(256, [64, 128]), (100, [64, 100]), (64, [64])])
def test_an_answer_that_stays_cut_is_quarantined(tmp_path, ceiling, rooms):
    settings = {"n_candidates": 10, "max_tokens_ceiling": ceiling}
    with FaultServer(["truncated"]) as server:
        asked = ask(tmp_path / "s", server, plain_spec(settings=settings), n=1)
    assert [post["body"]["max_tokens"] for post in asked.posts] == rooms
    assert asked.states["QUARANTINED"] == 1


def test_without_temperature_a_faulty_answer_is_shown_and_asked_about_once(tmp_path):
    def script(_, body):
        repaired = len(body["messages"]) == 3
        return Step() if repaired else Step(content="I like the first one")

    spec = plain_spec(params={"temperature": 0, "max_tokens": 64})
    with FaultServer(script) as server:
        asked = ask(tmp_path / "s", server, spec, n=2)
    assert asked.states == {"FOLLOWED": 2, "DONE": 2}
    assert "I like the first one" in str(asked.posts[-1]["body"]["messages"])


@pytest.mark.parametrize(
    ("step", "status"),
    [("unauthorized", 5), ("forbidden", 5), ("no_model", 5), ("redirect", 5), ("quota", 4)],
)
def test_what_cannot_go_on_stops_after_the_calls_in_flight(tmp_path, step, status):
    with FaultServer([step]) as server:
        asked = ask(tmp_path / "s", server, n=100)
    assert asked.stop.exit_code == status
    assert len(asked.posts) <= 8
    assert asked.states == {"PLANNED": 100}, "all can be asked when it is mended"
    assert asked.ledger.reserved_pusd == 0
    assert asked.tries == [0] * 100


@pytest.mark.parametrize(
    ("headers", "least"),
    [
        ({"retry_after": 1}, 1.0),
        ({"retry_after_ms": 700}, 0.7),
        ({"retry_after": -3}, 2.0),
        ({"retry_after": "inf"}, 2.0),
        ({"retry_after": "soon"}, 2.0),
        ({}, 2.0),
    ],
)
def test_nothing_is_sent_before_the_pause_asked_for_is_over(tmp_path, headers, least):
    refused = []

    def script(number, _):
        if number == 5:
            refused.append(time.monotonic())
            return limited(**headers)
        return Step(latency=0.01)

    with FaultServer(script) as server:
        asked = ask(tmp_path / "s", server, n=60)
    after = [post["t"] - refused[0] for post in asked.posts if post["t"] > refused[0] + 0.05]
    assert min(after) >= least
    assert min(after) <= least * 1.2 + 0.6
    assert asked.states == {"DONE": 60}
    assert asked.tries == [1] * 60, "a refusal for rate is no try"


def test_a_provider_that_never_relents_ends_the_run_clean(tmp_path):
    with FaultServer([limited(retry_after_ms=200)]) as server:
        asked = ask(tmp_path / "s", server, max_wait=1.0)
    assert asked.stop.exit_code == 6
    assert asked.states == {"PLANNED": 20}
    assert asked.ledger.reserved_pusd == 0


def test_a_refused_connection_costs_nothing_and_is_tried_again(tmp_path):
    with FaultServer() as server:
        server.down()
        import threading

        threading.Timer(1.0, server.up).start()
        asked = ask(tmp_path / "s", server, n=2)  # so few that the breaker stays closed
    assert asked.states == {"DONE": 2}
    assert (asked.unknown, asked.ledger.reserved_pusd) == (0, 0)
    assert asked.tries == [1] * 2


def test_failures_that_the_server_admits_are_tried_again_and_cost_nothing(tmp_path):
    with FaultServer(["error_500", "error_503", "timeout_408", "conflict_409", "ok"]) as server:
        asked = ask(tmp_path / "s", server, n=10)
    assert asked.states == {"DONE": 10}
    assert asked.ledger.reserved_pusd == 0
    assert len(asked.posts) == 14


def test_a_lying_usage_is_taken_noted_and_stops_the_run(tmp_path):
    lying = Step(usage={"prompt_tokens": 10**6})
    with FaultServer([lying]) as server:
        asked = ask(tmp_path / "s", server, n=100)
    assert asked.stop.exit_code == 3
    assert "usage_over_bound" in asked.anomalies
    assert asked.ledger.spent_pusd >= 10**6 * 150_000


def test_the_cap_is_never_broken_and_a_larger_one_goes_on(tmp_path):
    cap = 40 * 10**6  # fits a few dozen of the hundred calls
    with FaultServer([Step(latency=0.01)]) as server:
        asked = ask(tmp_path / "s", server, n=100, concurrency=64, cap=cap)
        assert asked.stop is None or asked.stop.exit_code == 3
        assert asked.billed_pusd() <= cap
        assert asked.ledger.spent_pusd + asked.ledger.reserved_pusd <= cap
    with FaultServer() as server:
        asked = ask(tmp_path / "s", server, n=100, cap=10**12)
    assert asked.states == {"DONE": 100}


# Embeddings -------------------------------------------------------------------------------


def test_embeddings_in_any_order_come_to_their_texts(tmp_path):
    results = []
    for name, script in (("straight", ["ok"]), ("permuted", ["permuted"])):
        with FaultServer(script) as server:
            ask(tmp_path / name, server, kind="embed", n=50)
        from augment.store.vectors import VectorFile
        from tests.augment.drive import plain_row

        file = VectorFile(tmp_path / name, readonly=True)
        spec = plain_spec("embed")
        results.append([file.get(plain_row(spec, i).key).tolist() for i in range(50)])
    assert results[0] == results[1]


def test_a_refused_text_is_found_by_halving_and_the_others_are_kept(tmp_path):
    def script(_, body):
        return Step(status=400, body="{}") if "text 77" in body["input"] else Step()

    with FaultServer(script) as server:
        asked = ask(tmp_path / "s", server, kind="embed", n=256)
    assert asked.states == {"DONE": 255, "QUARANTINED": 1}
    assert len(asked.posts) <= 2 * 8 + 1
