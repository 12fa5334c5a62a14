"""The Batch API's calls, over a socket, against files and batches kept in memory."""

from __future__ import annotations

import asyncio
import json
import re
import tracemalloc

import httpx2
import pytest

from augment.config import Provider
from augment.redact import Secret
from augment.remote_batches import RemoteBatches, RemoteError
from llmrec_pl.errors import ConfigError
from tests.augment.fault_server import FaultServer

KEY = "sk-live-0123456789abcdef"


class Shelf:
    """Files and batches of an account; `fail` holds what the next calls get instead."""

    def __init__(self):
        self.files, self.content, self.batches = {}, {}, {}
        self.seen, self.fail = [], []

    def __call__(self, method, target, headers, raw):
        path, _, query = target.removeprefix("/v1").partition("?")
        self.seen.append((method, path))
        assert headers["authorization"] == f"Bearer {KEY}"
        if self.fail:
            return self.fail.pop(0)
        if path.endswith("/content"):
            return (
                200,
                {"content-type": "application/octet-stream"},
                self.content[path.split("/")[2]],
            )
        found = self._answer(method, path.strip("/").split("/"), query, raw)
        return 200, {}, json.dumps(found).encode()

    def _answer(self, method, parts, query, raw):
        shelf = self.files if parts[0] == "files" else self.batches
        if method == "POST" and parts == ["files"]:
            return self._keep(raw)
        if method == "POST" and parts == ["batches"]:
            return self._begin(json.loads(raw))
        if method == "DELETE":
            del self.files[parts[1]]
            return {"id": parts[1], "object": "file", "deleted": True}
        if len(parts) == 1:
            return self._page(list(shelf.values()), query)
        if parts[-1] == "cancel":
            shelf[parts[1]]["status"] = "cancelling"
        return shelf[parts[1]]

    def _keep(self, raw):
        filename = re.search(rb'filename="([^"]+)"', raw)[1].decode()
        assert b'name="purpose"\r\n\r\nbatch' in raw
        made = {"id": f"file-{len(self.files)}", "object": "file", "filename": filename}
        made |= {"bytes": len(raw), "created_at": 1, "purpose": "batch", "status": "processed"}
        self.files[made["id"]] = made
        part = raw[raw.index(b'filename="') :]
        self.content[made["id"]] = part[part.index(b"\r\n\r\n") + 4 : part.index(b"\r\n--")]
        return made

    def _begin(self, asked):
        made = {"id": f"batch_{len(self.batches)}", "object": "batch", "status": "validating"}
        made |= {"created_at": 1, "errors": None, "output_file_id": None, "error_file_id": ""}
        self.batches[made["id"]] = made | asked
        return self.batches[made["id"]]

    def _page(self, entries, query):
        after = re.search(r"after=([^&]+)", query)
        start = [e["id"] for e in entries].index(after[1]) + 1 if after else 0
        page = entries[start : start + 2]
        more = start + 2 < len(entries)
        return {"object": "list", "data": page, "has_more": more}


@pytest.fixture
def shelf():
    return Shelf()


def use(shelf, work):
    """Run `await work(remote)` against a shelf."""

    async def whole(url):
        provider = Provider(name="openai", label="o", base_urls=[url], key_env="K")
        remote = RemoteBatches(provider, key=Secret(KEY))
        try:
            return await work(remote)
        finally:
            await remote.close()

    with FaultServer(routes=shelf) as server:
        return asyncio.run(whole(server.url))


def test_a_part_goes_up_and_comes_down_byte_for_byte(shelf, tmp_path):
    up, down = tmp_path / "part.jsonl", tmp_path / "out.jsonl"
    up.write_bytes('{"custom_id": "a", "text": "é😀"}\n'.encode() * 1000)

    async def work(remote):
        file_id = await remote.upload(up, "llmrec-7.jsonl")
        return file_id, await remote.download(file_id, down)

    file_id, size = use(shelf, work)
    assert shelf.files[file_id]["filename"] == "llmrec-7.jsonl"
    assert down.read_bytes() == up.read_bytes()
    assert size == up.stat().st_size
    assert down.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "part.jsonl"]


def test_a_batch_is_made_found_again_and_cancelled(shelf):
    metadata = {"store": "s", "part": "p", "sha": "00"}

    async def work(remote):
        made = await remote.create("file-1", "chat.completions", metadata)
        return (
            made,
            await remote.list_batches(),
            await remote.retrieve(made["id"]),
            await remote.cancel(made["id"]),
        )

    made, listed, found, cancelled = use(shelf, work)
    assert made["metadata"] == metadata
    assert made["endpoint"] == "/v1/chat/completions"
    assert made["completion_window"] == "24h"
    assert (made["output_file_id"], made["error_file_id"]) == (None, "")
    assert [batch["id"] for batch in listed] == [made["id"]] == [found["id"]]
    assert cancelled["status"] == "cancelling"


def test_lists_go_through_all_pages(shelf, tmp_path):
    path = tmp_path / "a"
    path.write_text("{}")

    async def work(remote):
        for i in range(5):
            await remote.upload(path, f"llmrec-{i}.jsonl")
            await remote.create(f"file-{i}", "embeddings", {"part": str(i)})
        await remote.delete_file("file-1")
        return await remote.list_files(), await remote.list_batches()

    files, batches = use(shelf, work)
    assert [entry["filename"] for entry in files] == [f"llmrec-{i}.jsonl" for i in (0, 2, 3, 4)]
    assert [entry["metadata"]["part"] for entry in batches] == list("01234")


@pytest.mark.parametrize("status", [401, 404, 429, 500, 503])
def test_a_failure_is_one_call_and_tells_the_status_without_the_key(shelf, status, tmp_path):
    path = tmp_path / "a"
    path.write_text("{}")
    answer = (status, {}, json.dumps({"error": {"message": f"bad key {KEY}"}}).encode())
    calls = [
        lambda remote: remote.upload(path, "x.jsonl"),
        lambda remote: remote.create("f", "embeddings", {}),
        lambda remote: remote.list_batches(),
        lambda remote: remote.retrieve("b"),
        lambda remote: remote.download("f", tmp_path / "out"),
    ]
    for call in calls:
        shelf.fail, shelf.seen = [answer], []
        with pytest.raises(RemoteError) as caught:
            use(shelf, call)
        assert caught.value.status == status
        assert KEY not in str(caught.value)
        assert "bad key" in caught.value.message
        assert len(shelf.seen) == 1
    assert not (tmp_path / "out").exists()


def test_a_download_that_breaks_leaves_the_old_file(shelf, tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("old")
    shelf.fail = [(200, {"content-encoding": "gzip"}, b"no gzip at all")]
    with pytest.raises(RemoteError) as caught:
        use(shelf, lambda remote: remote.download("f", out))
    assert caught.value.status is None
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]
    assert out.read_text() == "old"


def test_nobody_listening_has_no_status():
    async def work():
        provider = Provider(name="local", label="l", base_urls=["http://127.0.0.1:9/v1"])
        remote = RemoteBatches(provider, key=None)
        try:
            await remote.retrieve("b")
        finally:
            await remote.close()

    with pytest.raises(RemoteError, match="Connect") as caught:
        asyncio.run(work())
    assert caught.value.status is None


def test_a_missing_key_is_said_before_any_call():
    provider = Provider(name="openai", base_urls=["https://api.openai.com/v1"], key_env="NO_KEY")
    with pytest.raises(ConfigError, match="NO_KEY"):
        RemoteBatches(provider, key=None)


class Endless(httpx2.AsyncBaseTransport, httpx2.AsyncByteStream):
    """A server that takes any upload and gives a long download, without holding either."""

    def __init__(self, size):
        self.size, self.taken = size, 0

    async def handle_async_request(self, request):
        if request.method == "GET":
            return httpx2.Response(200, stream=self)
        async for chunk in request.stream:
            self.taken += len(chunk)
        return httpx2.Response(200, json={"id": "file-1", "object": "file", "filename": "x"})

    async def __aiter__(self):
        for _ in range(self.size >> 16):
            yield bytes(1 << 16)


def test_large_files_are_streamed_both_ways(tmp_path):
    size, path = 48 << 20, tmp_path / "big"
    server = Endless(size)

    async def work():
        provider = Provider(name="local", label="l", base_urls=["http://127.0.0.1:9/v1"])
        remote = RemoteBatches(provider, key=None, transport=server)
        tracemalloc.start()
        try:
            got = await remote.download("f", path)
            await remote.upload(path, "x.jsonl")
            return got, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            await remote.close()

    got, peak = asyncio.run(work())
    assert got == path.stat().st_size == size
    assert server.taken > size
    assert peak < size // 4
