"""The measuring instrument itself: what it says, logs, bills and limits."""

from __future__ import annotations

import base64
import json
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from augment.config import build_config
from augment.plan import make_spec, pool_for, wanted
from augment.validate import validate
from llmrec_pl.data.dataset import InteractionDataset
from tests.augment.fault_replies import NAMED, TRANSPORT_FAULTS, as_step, vector
from tests.augment.fault_server import FaultServer, bill, digest, read_log
from tests.canonical_folder import write_folder

BODY = {"model": "m", "messages": [{"role": "user", "content": "ask"}], "max_tokens": 8}


def post(url, body, path="/chat/completions", timeout=10):
    request = urllib.request.Request(
        url + path, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def started(*arguments):
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.augment.fault_server", *arguments],
        stdout=subprocess.PIPE,
        text=True,
    )
    return process, process.stdout.readline().strip()


def test_a_process_serves_a_script_and_its_log_can_be_audited_after_a_kill(tmp_path):
    log = tmp_path / "posts.jsonl"
    script = [{"do": "error_500", "times": 2}, {"do": "ok"}, {"do": "hang"}]
    process, url = started("--script", json.dumps(script), "--log", str(log))
    with process:
        statuses = [post(url, {**BODY, "n": 1})[0] for _ in range(3)]
        with pytest.raises(TimeoutError):
            urllib.request.urlopen(
                f"{url}/chat/completions", json.dumps(BODY).encode(), timeout=0.3
            )
        process.kill()
    posts = read_log(log)
    assert statuses == [500, 500, 200]
    assert [entry["do"] for entry in posts] == ["ok", "ok", "ok", "hang"]
    assert [entry["status"] for entry in posts] == [500, 500, 200, 200]
    assert posts[0]["digest"] == digest({**BODY, "n": 1}) != posts[3]["digest"]
    assert posts[2]["usage"]["prompt_tokens"] > 0
    assert [entry["usage"] for entry in posts[:2]] == [None, None]
    assert bill(posts)[0] >= posts[2]["usage"]["prompt_tokens"]


def test_the_last_step_of_a_script_is_served_for_ever():
    with FaultServer(["error_503", "ok"]) as server:
        assert [post(server.url, BODY)[0] for _ in range(4)] == [503, 200, 200, 200]


def test_a_rate_is_kept_and_gives_way_again():
    with FaultServer(rpm=60, burst=3) as server:
        statuses = [post(server.url, BODY)[0] for _ in range(6)]
        assert statuses == [200] * 3 + [429] * 3
        time.sleep(1.0)
        assert post(server.url, BODY)[0] == 200


def test_vectors_depend_on_the_text_alone_and_are_finite():
    with FaultServer() as server:
        body = {"model": "e", "input": ["a", "b"], "encoding_format": "base64", "dimensions": 5}
        _, raw = post(server.url, body, "/embeddings")
        _, plain = post(server.url, {"model": "e", "input": "b", "dimensions": 5}, "/embeddings")
    rows = json.loads(raw)["data"]
    assert base64.b64decode(rows[0]["embedding"]) == vector("a", 5)
    numbers = struct.unpack("<5f", base64.b64decode(rows[1]["embedding"]))
    assert all(1 <= number < 2 for number in numbers)
    assert json.loads(plain)["data"][0]["embedding"] == list(numbers)


def test_other_paths_go_to_the_routes():
    seen = []

    def routes(method, target, headers, raw):
        seen.append((method, target, raw, headers["content-type"]))
        return 200, {"content-type": "text/plain"}, b"kept"

    with FaultServer(routes=routes) as server:
        assert post(server.url, {"a": 1}, "/files?x=1") == (200, b"kept")
    assert seen == [("POST", "/v1/files?x=1", b'{"a": 1}', "application/json")]


@pytest.mark.parametrize("prompt_set", ["strict-1", "llmrec-2024"])
@pytest.mark.parametrize("structured", ["json_schema", "json_object", "none"])
@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("pairs", {"pool": "random", "n_candidates": 2}),
        ("profiles", {}),
        ("attributes", {"items_per_call": 1}),
        ("attributes", {"items_per_call": 3}),
    ],
)
def test_answers_pass_the_validators_of_every_task(kind, task, structured, prompt_set, tmp_path):
    dataset = InteractionDataset.load(write_folder(tmp_path / "data"))
    config = build_config(
        {
            "dataset": tmp_path / "data",
            "store": tmp_path / "store",
            "out": tmp_path / "out",
            "provider": "local",
            "domain": {"item": "film", "items": "films", "creator": "director"},
            "tasks": {kind: {"prompt_set": prompt_set, **task}},
        }
    )
    pool = pool_for(kind, config, dataset)
    spec = make_spec(kind, config, dataset, structured, pool)
    asked = [want for want in wanted(spec, dataset, pool) if want.body is not None]
    assert asked
    with FaultServer() as server:
        for want in asked:
            _, raw = post(server.url, want.body)
            verdict = validate(spec, raw, want.body, want.context)
            assert verdict.accepted, verdict


@pytest.mark.parametrize("name", sorted(NAMED))
def test_every_named_step_can_be_written_as_json(name):
    assert as_step(json.loads(json.dumps({"do": name, "latency": 0.5}))).latency == 0.5
    assert name not in TRANSPORT_FAULTS or as_step(name).do == name


def test_a_misspelt_field_of_a_step_is_refused():
    with pytest.raises(ValueError, match="latenzy"):
        as_step({"do": "ok", "latenzy": 1})
