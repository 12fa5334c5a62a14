"""A replay gives what the original gave: same results, same export, no network."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from augment.cassette_dump import dump
from augment.cli import run_command
from augment.clock import SystemClock
from augment.errors import ReplayMissError
from augment.export import export
from augment.judge import Policy
from augment.replay import Replay
from augment.runner import Options, Runner
from augment.store import Store
from augment.store.reopen import reopen
from llmrec_pl.errors import AugmentationError, ConfigError
from tests.augment.batch_job import KEY, KEY_ENV, Job
from tests.augment.batch_server import Account, answered
from tests.augment.fault_server import FaultServer
from tests.augment.films import write_films
from tests.augment.taped import Scripted, accepted, config_of, taped, write_pool
from tests.augment.test_cassette import lines_of, write_lines


@pytest.fixture(autouse=True)
def no_network(monkeypatch, request):
    """Connections are errors, but where a test needs a loopback server."""
    if "server" not in request.fixturenames:
        monkeypatch.setattr(socket.socket, "connect", _refuse)


def _refuse(*_):
    raise AssertionError("a replay opened a connection")


@pytest.fixture(scope="module")
def tape(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tape")
    config, dataset = taped(folder, Scripted(seed=2, faults=0.5))
    dump(config.store, config, dataset, folder / "tape.jsonl.gz")
    return folder / "tape.jsonl.gz", config, dataset


@settings(max_examples=10)
@given(
    seed=st.integers(0, 10**6),
    faults=st.sampled_from([0.0, 0.3, 0.7]),
    temperature=st.sampled_from([0.0, 0.6]),
    draws=st.sampled_from([1, 2]),
    most=st.sampled_from([None, None, 5, 20, 40]),
)
def test_whatever_happened_a_replay_accepts_the_same(seed, faults, temperature, draws, most):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sampling = {"temperature": temperature}
        config, dataset = taped(
            folder,
            Scripted(seed, faults, most),
            pairs={**sampling, "draws": draws},
            profiles=sampling,
            attributes=sampling,
        )
        path = folder / "c.jsonl.gz"
        dump(config.store, config, dataset, path)
        replay = Replay(path, dataset=config.dataset)
        found = replay.run(folder / "replayed", folder / "export")
        assert accepted(folder / "replayed") == accepted(config.store)
        assert found.same
        assert found.different == []
        made = export(config.store, config, dataset)
        assert made.content_id == found.content_id
        # A replay can itself be put on a cassette, and nothing is lost.
        again = folder / "again.jsonl.gz"
        dump(folder / "replayed", replay.config, dataset, again)
        assert Replay(again, dataset=config.dataset).run().content_id == found.content_id


def test_the_command_says_same_and_ends_well(tape, tmp_path, capsys):
    path, config, _ = tape
    out, store = tmp_path / "out", tmp_path / "store"
    base = ["--cassette", str(path), "--dataset", str(config.dataset)]
    run_command(
        "replay",
        [*base, "--out", str(out), "--store", str(store)],
    )
    told = capsys.readouterr().out
    assert told.endswith("same\n")
    assert accepted(store) == accepted(config.store)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["content_id"] in told
    with pytest.raises(AugmentationError, match="already"):
        run_command("replay", [*base, "--store", str(store)])


def test_a_changed_reply_gives_another_export_and_status_1(tape, tmp_path):
    path, config, _ = tape
    lines = lines_of(path)
    for line in lines:
        if "raw" in line and "France" in line["raw"]:
            line["raw"] = line["raw"].replace("France", "Norway")
    changed = write_lines(tmp_path / "changed.jsonl.gz", lines)
    # Another answer is another text to embed, which the cassette does not know.
    with pytest.raises(ReplayMissError):
        Replay(changed, dataset=config.dataset).run()
    header = lines[0]
    del header["specs"]["embed"]
    header["export"]["files"] = {
        k: v for k, v in header["export"]["files"].items() if "embed" not in k
    }
    write_lines(changed, lines)
    command = [sys.executable, "-m", "augment", "replay", "--cassette", str(changed)]
    done = subprocess.run(
        [*command, "--dataset", str(config.dataset)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 1
    assert "another export" in done.stderr
    assert "attributes.parquet" in done.stderr
    assert "pairs" not in done.stderr.partition(" in ")[2].partition(".")[0]


def test_a_missing_key_is_named_with_what_it_was_for(tape, tmp_path):
    path, config, _ = tape
    lines = lines_of(path)
    user = next(i for i, line in enumerate(lines) if line.get("draw") == 0 and "raw" in line)
    gone = lines[user]["key"]
    kept = [line for line in lines if line.get("key") != gone]
    kept[-1]["lines"] = len(kept)
    cut = write_lines(tmp_path / "cut.jsonl.gz", kept)
    with pytest.raises(ReplayMissError, match=rf"{gone}, which asks pairs for user u\d"):
        Replay(cut, dataset=config.dataset).run()


def test_the_message_says_in_what_the_task_differs(tape, tmp_path):
    path, config, _ = tape
    header, *rest = lines_of(path)
    header["config"]["tasks"]["pairs"]["temperature"] = 0.9
    edited = write_lines(tmp_path / "hot.jsonl.gz", [header, *rest])
    with pytest.raises(ReplayMissError, match="another task than in the cassette: params was"):
        Replay(edited, dataset=config.dataset).run()


def test_pools_beside_the_cassette_are_found_wherever_it_lies(tmp_path):
    first, dataset = taped(tmp_path, Scripted(), pairs=None, embed=None)
    pool = write_pool(tmp_path / "pools", dataset)
    config, _ = taped(tmp_path, Scripted(), films=first.dataset, pool=pool)
    dump(config.store, config, dataset, tmp_path / "c.jsonl.gz")
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.move(tmp_path / "c.jsonl.gz", moved / "renamed.jsonl.gz")
    with pytest.raises(ConfigError, match=r"copy the folder 'renamed.jsonl.gz.pools'"):
        Replay(moved / "renamed.jsonl.gz", dataset=config.dataset)
    shutil.move(tmp_path / "c.jsonl.gz.pools", moved / "renamed.jsonl.gz.pools")
    shutil.rmtree(pool.parent)
    shutil.rmtree(config.store)
    assert Replay(moved / "renamed.jsonl.gz", dataset=config.dataset).run().same


def test_another_pool_and_another_data_set_are_refused(tmp_path):
    first, dataset = taped(tmp_path, Scripted(), pairs=None, embed=None)
    pool = write_pool(tmp_path / "pools", dataset)
    config, _ = taped(tmp_path, Scripted(), films=first.dataset, pool=pool)
    path = tmp_path / "c.jsonl.gz"
    dump(config.store, config, dataset, path)
    other = write_pool(tmp_path / "other", dataset, skip=1)
    with pytest.raises(AugmentationError, match="candidate pool"):
        Replay(path, dataset=config.dataset, pool=other)
    foreign = write_films(tmp_path / "foreign", users=6, items=8, history=3)
    with pytest.raises(AugmentationError, match="fingerprint"):
        Replay(path, dataset=foreign)
    with pytest.raises(ConfigError, match="--dataset DIR"):
        Replay(path)


def test_tasks_that_never_ran_are_not_replayed(tmp_path):
    films = write_films(tmp_path / "films", users=6, items=8, history=2)
    config = config_of(tmp_path, films)
    dataset_config, dataset = taped(tmp_path, Scripted(), config=config.model_copy(), films=films)
    with Store(tmp_path / "part", create=True) as store:
        runner = Runner(
            dataset_config,
            dataset,
            store,
            Options(only=frozenset({"profiles"})),
            clock=SystemClock(),
            answerers=lambda _: Scripted(),
        )
        asyncio.run(runner.run())
    dump(tmp_path / "part", dataset_config, dataset, tmp_path / "c.jsonl.gz")
    found = Replay(tmp_path / "c.jsonl.gz", dataset=films).run()
    assert found.same
    assert found.unanswered == 0


def test_answers_that_came_after_a_second_attempt_at_quarantined_ones_are_found(tmp_path):
    films = write_films(tmp_path / "films", users=6, items=8, history=2)
    tasks = {"profiles": None, "attributes": None, "embed": None}

    class Late(Scripted):
        def _step(self, call):
            step = super()._step(call)
            bad = self.asked[call.keys[0]] <= 4
            return type(step)(content="no JSON") if bad else step

    answerer = Late()
    config, dataset = taped(tmp_path, answerer, films=films, **tasks)
    assert accepted(config.store) == {}
    with Store(config.store) as store:
        store.do(reopen)
    taped(tmp_path, answerer, config=config, films=films)
    assert len(accepted(config.store)) == 6
    dump(config.store, config, dataset, tmp_path / "c.jsonl.gz")
    found = Replay(tmp_path / "c.jsonl.gz", dataset=films).run(tmp_path / "replayed")
    assert accepted(tmp_path / "replayed") == accepted(config.store)
    assert found.same
    assert Policy().max_rejects < 4


def test_what_came_by_batch_replays_as_well(tmp_path, monkeypatch, server):
    monkeypatch.setenv(KEY_ENV, KEY)
    films = write_films(tmp_path / "films", users=6)
    job = Job(tmp_path, films, server.account, server.url)
    server.account.answers = lambda n, asked: answered(
        n, asked, {"content": "no"} if n % 2 else "ok"
    )
    job.all_the_way()
    job.all_the_way()
    path = tmp_path / "c.jsonl.gz"
    run_command("cassette", ["dump", "--config", str(job.config), "--out", str(path)])
    text = gzip.decompress(path.read_bytes()).decode()
    assert KEY not in text
    assert "authorization" not in text.lower()
    assert Replay(path, dataset=films).run(tmp_path / "replayed").same
    assert accepted(tmp_path / "replayed") == accepted(job.store)


@pytest.fixture
def server():
    account = Account()
    with FaultServer(routes=account) as running:
        running.account = account
        yield running
