"""Where the money went: sums by hand, and against the ledger for random histories."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_rows import row_of, spec_of

from augment.budget import read_ledger
from augment.costs import DIMENSIONS, ablation_costs, read_costs
from augment.money import Usage
from augment.store import (
    AttemptState,
    RequestChange,
    Settlement,
    State,
    Store,
    add_spec,
    plan,
    reserve,
)

PAPER_USD = {"U": 10.92, "I": 1.96, "U-I": 8.26, "all": 21.14}


def call(store, run, requests, end, bound=100, cost=40):
    """Send a call that ends as told: useful, rejected, unknown, unbilled or in_flight."""
    attempt = store.do(
        lambda db: reserve(
            db,
            run=run,
            lane="sync",
            requests=requests,
            bound_pusd=bound,
            price=None,
            now=86_400_000,
        )
    )
    if end == "in_flight":
        return attempt
    states = {"unknown": AttemptState.UNKNOWN, "unbilled": AttemptState.UNBILLED}
    state = states.get(end, AttemptState.OK)
    judged = state == AttemptState.OK
    changes = [
        RequestChange(
            request,
            bytes([request % 256]),
            State.DONE if end == "useful" else State.PLANNED,
            code="accepted" if end == "useful" else "schema",
            validator="v/1" if judged else "",
            value="{}" if end == "useful" else None,
        )
        for request in requests
    ]
    usage = Usage(10, 2) if judged else None
    outcome = {"unknown": "ambiguous", "unbilled": "server"}.get(end, "ok")
    store.settle(
        Settlement(
            attempt, state, outcome, 1, changes, cost_pusd=cost if judged else 0, usage=usage
        )
    ).result()
    return attempt


def planned_store(folder, specs=(("pairs", 0.6),)):
    store = Store(folder, create=True, spool_size=65536)
    ids = []
    for n, (kind, temperature) in enumerate(specs):
        spec = spec_of(kind, params={"temperature": temperature})
        ids.append(store.do(lambda db, spec=spec: add_spec(db, spec, 0))[0])
        rows = [row_of(100 * n + i) for i in range(20)]
        store.do(lambda db, spec=ids[-1], rows=rows: plan(db, spec, rows))
    run = store.do(lambda db: db.execute("INSERT INTO run(t0) VALUES (0)").lastrowid)
    return store, run


def test_each_use_of_money_is_told_apart(tmp_path):
    store, run = planned_store(tmp_path)
    with store:
        for request, end in enumerate(
            ["useful", "rejected", "unknown", "unbilled", "in_flight"], 1
        ):
            call(store, run, [request], end)
        (row,) = store.do(read_costs)
    assert row.group == {"task": "pairs"}
    assert row.pusd == {
        "useful": 40, "rejected": 40, "unknown": 100, "unbilled": 0, "in_flight": 100,
    }  # fmt: skip
    assert (row.calls, row.replies, row.accepted, row.results) == (5, 2, 1, 1)
    assert (row.acceptance, row.spent_pusd, row.per_result_pusd) == (0.5, 80, 80)
    assert (row.tokens_in, row.tokens_out) == (20, 4)


def test_a_second_accepted_reply_is_a_duplicate(tmp_path):
    store, run = planned_store(tmp_path)
    with store:
        lost = call(store, run, [1], "unknown")
        call(store, run, [1], "useful")
        done = RequestChange(
            1, b"k", State.DONE, code="accepted", validator="v/1", value='{"late": 1}'
        )
        late = Settlement(lost, AttemptState.OK, "ok", 2, [done], cost_pusd=7)
        store.settle(late).result()
        (row,) = store.do(read_costs)
        assert store.do(read_ledger).spent_pusd == 47
    assert row.pusd == {"useful": 40, "duplicate": 7}
    assert row.results == 1


def test_one_call_with_many_texts_counts_its_money_once(tmp_path):
    store, run = planned_store(tmp_path)
    with store:
        call(store, run, [1, 2, 3], "useful")
        (row,) = store.do(read_costs)
    assert (row.calls, row.results, row.spent_pusd, row.tokens_in) == (1, 3, 40, 10)


def test_acceptance_by_temperature(tmp_path):
    store, run = planned_store(tmp_path, [("pairs", 0.0), ("pairs", 1.0)])
    with store:
        for request, end in ((1, "useful"), (2, "useful"), (21, "useful"), (22, "rejected")):
            call(store, run, [request], end)
        rows = store.do(lambda db: read_costs(db, ["task", "temperature", "top_p"]))
    rates = {row.group["temperature"]: row.acceptance for row in rows}
    assert rates == {0.0: 1.0, 1.0: 0.5}
    assert all(row.group["top_p"] is None for row in rows)


def test_a_newer_check_decides_what_counts_as_accepted(tmp_path):
    store, run = planned_store(tmp_path)
    with store:
        attempt = call(store, run, [1], "useful")
        for version in (2, 10):
            store.do(
                lambda db, version=version: db.execute(
                    "INSERT INTO verdict VALUES (?, 1, ?, 'schema', '')", (attempt, f"v/{version}")
                )
            )
        (row,) = store.do(read_costs)
    assert (row.replies, row.accepted) == (1, 0)


@pytest.mark.parametrize("name", DIMENSIONS)
def test_every_dimension_keeps_the_sums(tmp_path, name):
    store, run = planned_store(tmp_path, [("pairs", 0.0), ("profiles", 1.0)])
    with store:
        for request, end in ((1, "useful"), (2, "rejected"), (21, "useful"), (22, "in_flight")):
            call(store, run, [request], end)
        rows = store.do(lambda db: read_costs(db, [name]))
    assert sum(row.calls for row in rows) == 4
    assert sum(row.spent_pusd for row in rows) == 120
    assert sum(row.results for row in rows) == 2
    if name == "day":
        assert [row.group["day"] for row in rows] == ["1970-01-02"]


ENDS = st.sampled_from(["useful", "rejected", "unknown", "unbilled", "in_flight"])


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(ENDS, st.integers(0, 90)), max_size=12))
def test_the_uses_add_up_to_the_ledger(tmp_path_factory, history):
    store, run = planned_store(tmp_path_factory.mktemp("store"))
    with store:
        for request, (end, cost) in enumerate(history, 1):
            call(store, run, [request], end, cost=cost)
        rows = store.do(lambda db: read_costs(db, []))
        ledger = store.do(read_ledger)
    assert sum(row.spent_pusd for row in rows) == ledger.spent_pusd
    pending = sum(row.pusd.get(use, 0) for row in rows for use in ("unknown", "in_flight"))
    assert pending == ledger.reserved_pusd
    assert sum(row.calls for row in rows) == len(history)


def test_ablation_gives_the_cost_half_of_table_7(tmp_path):
    specs = [("profiles", 0.6), ("attributes", 0.6), ("pairs", 0.6), ("embed", 0.6)]
    store, run = planned_store(tmp_path, specs)
    with store:
        for n, cost in enumerate((1092, 196, 826, 5)):
            call(store, run, [20 * n + 1], "useful", bound=2000, cost=cost)
        rows = store.do(ablation_costs)
    assert {row.label: row.pusd / 100 for row in rows} == PAPER_USD
    assert {row.label: float(row.paper_usd) for row in rows} == PAPER_USD
