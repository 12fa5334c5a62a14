"""A run on a part of the data set: fixed users and items, equal requests, nothing asked twice."""

import contextlib
import json

import pytest
import yaml

from augment.cli import main
from augment.config import build_config
from augment.estimate import estimate
from augment.plan import make_spec, pool_for, wanted
from augment.store import open_readonly
from llmrec_pl.data.augmentation import read_manifest
from llmrec_pl.data.dataset import InteractionDataset
from tests.augment.films import write_films

USERS, ITEMS = 14, 20


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with a data set `films` and a config for it."""
    monkeypatch.chdir(tmp_path)
    write_films(tmp_path / "films", users=USERS, items=ITEMS)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values()), encoding="utf-8")
    return tmp_path


def values(**tasks):
    return {
        "dataset": "films",
        "store": "store",
        "out": "out",
        "provider": {"name": "heuristic", "embed_model": "hashing-256"},
        "tasks": {"pairs": {"pool": "random", "n_candidates": 5}, **tasks},
    }


def call(*arguments):
    try:
        main([str(a) for a in arguments])
    except SystemExit as leave:
        return leave.code
    return 0


def asked(store="store"):
    """Entities wanted by task, and the number of attempts that the store knows."""
    with contextlib.closing(open_readonly(store)) as db:
        rows = db.execute(
            "SELECT s.kind, w.entity FROM wanted w JOIN spec s ON s.id = w.spec ORDER BY 1, 2"
        ).fetchall()
        (attempts,) = db.execute("SELECT count(*) FROM attempt").fetchone()
    found = {}
    for kind, entity in rows:
        found.setdefault(kind, set()).add(entity)
    return found, attempts


def wants(dataset, kind, limit, provider="openai", **tasks):
    config = build_config({**values(**tasks), "provider": provider})
    pool = pool_for(kind, config, dataset)
    spec = make_spec(kind, config, dataset, "json_schema", pool)
    return list(wanted(spec, dataset, pool, limit=limit))


def test_a_trial_a_larger_one_and_the_whole_ask_for_each_thing_once(place):
    assert call("run", "--config", "c.yaml", "--limit", 4) == 0
    small, first = asked()
    assert {kind: len(small[kind]) for kind in ("pairs", "profiles", "attributes")} == {
        "pairs": 4, "profiles": 4, "attributes": 4,
    }  # fmt: skip
    assert small["pairs"] == small["profiles"]
    assert not read_manifest(place / "out")["coverage"]["pairs"]["planned_in_full"]
    assert call("run", "--config", "c.yaml", "--limit", 9) == 0
    larger, _ = asked()
    assert all(small[kind] < larger[kind] for kind in ("pairs", "profiles", "attributes"))
    assert call("run", "--config", "c.yaml") == 0
    whole, together = asked()
    assert (len(whole["pairs"]), len(whole["attributes"])) == (USERS, ITEMS)
    assert read_manifest(place / "out")["coverage"]["pairs"]["planned_in_full"]
    assert call("run", "--config", "c.yaml", "--store", "once", "--out", "at-once") == 0
    assert first < together
    ids = [read_manifest(place / name)["content_id"] for name in ("out", "at-once")]
    assert ids[0] == ids[1], "parts add up to the whole"
    with contextlib.closing(open_readonly("store")) as db:
        (twice,) = db.execute(
            "SELECT count(*) FROM (SELECT 1 FROM call_item GROUP BY request HAVING count(*) > 1)"
        ).fetchone()
    assert twice == 0


def test_the_choice_depends_on_names_only_and_grows(tmp_path):
    usual = InteractionDataset.load(write_films(tmp_path / "a", USERS, ITEMS))
    turned = InteractionDataset.load(write_films(tmp_path / "b", USERS, ITEMS, order=3))
    for kind, names in (("profiles", "user_ids"), ("attributes", "item_ids")):
        chosen = [
            {str(getattr(data, names)[want.entity]) for want in wants(data, kind, 5)}
            for data in (usual, turned)
        ]
        assert chosen[0] == chosen[1]
        assert len(chosen[0]) == 5
    assert {w.entity for w in wants(usual, "pairs", 5)} < {
        w.entity for w in wants(usual, "pairs", 6)
    }
    assert len(wants(usual, "pairs", 10_000)) == USERS


def test_groups_of_items_stay_whole_so_that_none_is_paid_twice(tmp_path):
    films = InteractionDataset.load(write_films(tmp_path / "films", USERS, ITEMS))
    grouped = {"items_per_call": 3}
    some = wants(films, "attributes", 4, attributes=grouped)
    whole = wants(films, "attributes", None, attributes=grouped)
    assert len(some) == 6
    bodies = [json.dumps(want.body) for want in whole]
    assert all(json.dumps(want.body) in bodies for want in some)


def test_a_limit_below_what_waits_is_refused_and_sends_nothing(place, capsys):
    assert call("plan", "--config", "c.yaml") == 0
    assert call("run", "--config", "c.yaml", "--limit", 3) == 1
    said = capsys.readouterr().err
    assert "`--limit 3` leaves less than what an earlier plan" in said
    assert f"{USERS} requests wait" in said
    assert asked()[1] == 0
    assert call("run", "--config", "c.yaml") == 0
    assert call("run", "--config", "c.yaml", "--limit", 3) == 0, "nothing waits any more"


def test_an_estimate_says_what_a_limited_run_sends(place):
    dataset, config = InteractionDataset.load(place / "films"), build_config(values())
    before = {t.kind: t.to_pay for t in estimate(config, dataset, limit=4).tasks}
    assert [before[kind] for kind in ("pairs", "profiles", "attributes")] == [4, 4, 4]
    assert call("run", "--config", "c.yaml", "--limit", 4) == 0
    assert {t.to_pay for t in estimate(config, dataset, limit=4).tasks} == {0}
    after = {t.kind: t.to_pay for t in estimate(config, dataset, limit=5).tasks}
    assert [after[kind] for kind in ("pairs", "profiles", "attributes")] == [1, 1, 1]


def test_only_texts_within_the_limit_are_embedded(place):
    tasks = "pairs,profiles,attributes"
    assert call("run", "--config", "c.yaml", "--only", tasks, "--no-export") == 0
    assert call("run", "--config", "c.yaml", "--only", "embed", "--limit", 3) == 0
    with contextlib.closing(open_readonly("store")) as db:
        (users,) = db.execute(
            "SELECT count(*) FROM wanted w JOIN spec s ON s.id = w.spec WHERE s.kind = 'embed' "
            "AND w.field = 0"
        ).fetchone()
    assert users == 3


def test_a_replay_of_a_limited_run_gives_the_same(place):
    assert call("run", "--config", "c.yaml", "--limit", 4) == 0
    assert call("cassette", "dump", "--config", "c.yaml", "--out", "c.jsonl.gz") == 0
    assert call("replay", "--cassette", "c.jsonl.gz", "--dataset", "films") == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--limit", "0"], "needs to be positive (got 0)"),
        (["estimate", "--limit", "3", "--sample", "4"], "cannot be combined"),
    ],
)
def test_a_senseless_limit_is_refused(place, capsys, arguments, said):
    assert call(arguments[0], "--config", "c.yaml", *arguments[1:]) == 1
    assert said in capsys.readouterr().err


def test_embedding_alone_says_so_where_nothing_was_asked_under_this_config(place, capsys):
    assert call("run", "--config", "c.yaml", "--limit", 2, "--no-export") == 0
    other = ["--set", "domain.creator=director", "--only", "embed"]
    assert call("run", "--config", "c.yaml", *other) == 1
    said = capsys.readouterr().err
    assert "there is nothing to embed" in said
    assert "profiles by heuristic@v1 / counts" in said
