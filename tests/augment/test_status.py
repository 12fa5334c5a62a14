"""What `status` says, during a run too, and that it never disturbs one."""

import dataclasses
import io
import json
import os
import subprocess
import sys

import pytest
from rich.console import Console
from store_rows import row_of, spec_of

from augment.status import lock_holder, read_status, show_status
from augment.store import (
    AttemptState,
    PlanRow,
    RequestChange,
    Settlement,
    State,
    Store,
    add_spec,
    plan,
    reserve,
)
from augment.store.changes import ChildRow
from llmrec_pl.errors import AugmentationError


def settle_one(store, run, request, state, code="accepted", **other):
    attempt = store.do(
        lambda db: reserve(
            db, run=run, lane="sync", requests=[request], bound_pusd=9, price=None, now=0
        )
    )
    change = RequestChange(request, b"k", state, code=code, validator="v", **other)
    end = Settlement(attempt, AttemptState.OK, "ok", 1, [change], cost_pusd=3)
    store.settle(end).result()


def child(n):
    row = row_of(n)
    return ChildRow(row.key, row.body, row.context, 100, 10)


def test_counts_follow_the_wanted_answers(planned):
    store, spec, run = planned
    store.do(
        lambda db: plan(db, spec, [PlanRow(50, 0, "no_history"), PlanRow(51, 0, "no_history")])
    )
    store.do(lambda db: plan(db, spec, [row_of(1, entity=60)]))  # shares a request with entity 1
    settle_one(store, run, 2, State.DONE, value="{}")
    settle_one(store, run, 3, State.QUARANTINED, "truncated")
    settle_one(store, run, 4, State.FOLLOWED, "schema", child=child(904))  # asked on
    (task,) = read_status(store.folder).tasks
    assert task.wanted == 23
    assert task.states == {"done": 2, "quarantined": 1, "planned": 18}
    assert task.codes == {"truncated": 1}
    assert task.skipped == {"no_history": 2}
    assert task.spent_pusd == 9


def test_a_follow_up_has_the_last_word(planned):
    store, _, run = planned
    settle_one(store, run, 4, State.FOLLOWED, "schema", child=child(904))
    settle_one(store, run, 21, State.QUARANTINED, "refused")
    (task,) = read_status(store.folder).tasks
    assert task.codes == {"refused": 1}
    assert sum(task.states.values()) == 20


def test_two_specs_that_share_requests_both_see_the_answers(planned):
    store, _, run = planned
    other, _ = store.do(lambda db: add_spec(db, spec_of(prompt_set="strict-1"), 0))
    store.do(lambda db: plan(db, other, [row_of(i) for i in range(5)]))
    settle_one(store, run, 1, State.DONE, value="{}")
    assert [task.states["done"] for task in read_status(store.folder).tasks] == [1, 1]


def test_it_can_be_read_by_programs_and_people(planned):
    store, _, run = planned
    settle_one(store, run, 3, State.QUARANTINED, "not_json")
    store.do(lambda db: db.execute("INSERT INTO anomaly VALUES (1, 0, 'odd', 'detail [x]')"))
    status = read_status(store.folder)
    plain = json.loads(status.as_json())
    assert plain["ledger"] == {"cap_pusd": None, "spent_pusd": 3, "reserved_pusd": 0}
    assert plain["tasks"][0]["codes"] == {"not_json": 1}
    console = Console(width=120, file=io.StringIO())
    show_status(status, console)
    text = console.file.getvalue()
    assert "1 not_json" in text
    assert "odd: detail [x]" in text
    assert "1 requests in quarantine" in text
    assert f"python -m augment retry-failed {store.folder}" in text


@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_figure_is_cut_on_a_narrow_window(planned, width):
    store, _, run = planned
    settle_one(store, run, 3, State.QUARANTINED, "inadmissible_value_that_is_long")
    status = read_status(store.folder)
    big = {"tokens_in": 123_456_789, "tokens_out": 98_765, "spent_pusd": 123_456_789_012_345}
    task = dataclasses.replace(status.tasks[0], model="a-model-with-a-long-name" * 3, **big)
    console = Console(width=width, file=io.StringIO())
    show_status(dataclasses.replace(status, tasks=[task]), console)
    text = console.file.getvalue()
    for whole in ("123,456,789 /", "98,765", "$123.46", "1 inadmissible_value_that_is_long"):
        assert whole in text
    assert "skipped" not in text, "nothing stands in that column"


def test_it_never_writes_or_checkpoints(planned):
    store, _, run = planned
    settle_one(store, run, 1, State.DONE, value="{}")
    # readers of a WAL share its index, which is no data
    files = [p for p in store.folder.iterdir() if not p.name.endswith("-shm")]
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in files}
    wal = (store.folder / "main.sqlite-wal").read_bytes()
    read_status(store.folder)
    assert (store.folder / "main.sqlite-wal").read_bytes() == wal
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in files} == before


def test_the_holder_is_named_only_while_it_works(tmp_path):
    folder = tmp_path / "store"
    with Store(folder, create=True, spool_size=65536):
        assert f"process {os.getpid()}" in read_status(folder).holder
    assert read_status(folder).holder is None, "a lock file that was left behind holds nothing"
    assert lock_holder(tmp_path / "nothing") is None


def test_looking_for_the_holder_from_outside_turns_no_run_away(tmp_path):
    folder = tmp_path / "store"
    with Store(folder, create=True, spool_size=65536):
        code = "import sys; from pathlib import Path; from augment.status import lock_holder; "
        code += "print(lock_holder(Path(sys.argv[1])))"
        said = subprocess.run(
            [sys.executable, "-c", code, folder], capture_output=True, text=True, check=True
        ).stdout
        assert f"process {os.getpid()}" in said
    with Store(folder):
        pass


def test_no_store_is_said_with_a_remedy(tmp_path):
    with pytest.raises(AugmentationError, match="augment run"):
        read_status(tmp_path)
