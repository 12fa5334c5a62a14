"""Every command once, against servers that echo the key: it is in no file and nothing said."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import sqlite3
import urllib.parse
import zlib
from pathlib import Path

import pytest

from augment.cli import COMMANDS, main
from augment.store import State, open_readonly
from tests.augment.batch_server import Account, Fault, answered, response
from tests.augment.command import KEY, Command
from tests.augment.fault_replies import NAMED, TRANSPORT_FAULTS, Step, error
from tests.augment.fault_server import FaultServer
from tests.augment.lives import until

SPELLINGS = [
    KEY.encode(),
    KEY[6:-4].encode(),  # shortened, as some servers show it
    base64.b64encode(KEY.encode()).rstrip(b"="),
    urllib.parse.quote(KEY).encode(),
]
LEAK = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}."}})
ECHOES = [
    Step(status=500, body=LEAK),
    Step(status=503, body=f"<html>Bearer {KEY}</html>", headers={"content-type": "text/html"}),
    error(400, "invalid_value", f"api-key: {KEY}"),
    Step(status=429, body=LEAK, headers={"retry-after-ms": "50", "x-debug-key": KEY}),
    *(NAMED[name] for name in TRANSPORT_FAULTS if name != "hang"),
    NAMED["refusal"],
    Step(content="no JSON"),
    Step(body=""),
]


def script(number, _):
    return ECHOES[number] if number < len(ECHOES) else Step()


class Everything:
    """Says commands and keeps what comes back; looks into every file in the end."""

    def __init__(self, command, capfd):
        self.command, self.capfd, self.used, self.said = command, capfd, set(), b""

    def __call__(self, name, *arguments, status=(0,)):
        self.used.add(name)
        try:
            main([name, *map(str, arguments)])
            left = 0
        except SystemExit as leave:
            left = leave.code
        told = self.capfd.readouterr()
        self.said += (told.out + told.err).encode()
        assert left in status, (name, left, told)

    def places(self):
        """Yield (name, bytes) of all that a person could find."""
        yield "said", self.said + self.command.said
        for path in self.command.folder.rglob("*"):
            if not path.is_file():
                continue
            yield path.name, path.read_bytes()
            if path.suffix == ".gz":
                yield f"{path.name}, unpacked", gzip.decompress(path.read_bytes())
            if path.suffix == ".sqlite":
                yield from self._blobs(path)

    @staticmethod
    def _blobs(path):
        with contextlib.closing(sqlite3.connect(path)) as db:
            tables = [t for (t,) in db.execute("SELECT name FROM sqlite_master WHERE type='table'")]
            for table in tables:
                for row in db.execute(f"SELECT * FROM {table}"):
                    for value in row:
                        if isinstance(value, bytes):
                            with contextlib.suppress(zlib.error):
                                yield f"{path.name}: {table}", zlib.decompress(value)
                        else:
                            yield f"{path.name}: {table}", str(value).encode()


@pytest.mark.slow
def test_the_key_is_in_no_file_and_no_word_of_any_command(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    account = Account()
    account.faults = [
        Fault("POST", "/files", 401, body=LEAK.encode()),
        Fault("GET", r"/batches/.*", 500, body=LEAK.encode()),
    ]
    account.answers = lambda n, asked: (
        response(n, asked, 401, json.loads(LEAK)) if n == 0 else answered(n, asked)
    )
    small = {"timeout_s": 3.0, "read_timeout_s": 2.0}
    with FaultServer(script, routes=account) as server:
        command = Command(
            tmp_path, server, provider=small, profiles={}, attributes={}, embed={"dimensions": 8}
        )
        say = Everything(command, capfd)
        config = ["--config", command.config]
        _faulty_run(command, server)
        say.used.add("run")
        for name in ("status", "estimate", "export"):
            say(name, *config, *(["--json"] if name == "status" else []))
        for words in (["status", "store"], ["cost", "store", "--audit"], ["cost", "store"],
                      ["unknown", "list", "store"], ["budget", "show", "store"],
                      ["report", *config], ["doctor", "store"],
                      ["revalidate", "store"]):  # fmt: skip
            say(*words)
        say("doctor", *config, "--online", status=(0, 1))
        say("unknown", "retry", "store", "--all")
        say("retry-failed", "store")
        say("run", *config)
        say("cassette", "dump", "store", "--out", "tape.jsonl.gz")
        say("cassette", "verify", "tape.jsonl.gz")
        replay = ["--cassette", "tape.jsonl.gz", "--dataset", "films"]
        say("replay", *replay, "--store", "again", "--out", "replayed")
        hot = [*config, "--set", "tasks.pairs.temperature=0.9", "--only", "pairs"]
        say("plan", *hot)
        say("batch", "build", *hot)
        for action in ("submit", "submit", "poll", "poll", "list"):
            say("batch", action, *config, status=(0, 1, 5))
        say("init", "films", "--out", "made.yaml")
        assert {post["headers"]["authorization"] for post in server.posts} == {f"Bearer {KEY}"}
        assert account.keys == {f"Bearer {KEY}"}
    assert set(COMMANDS) - say.used == {"serve-local"}, "which asks nobody"
    with contextlib.closing(open_readonly(command.store)) as db:
        batched = "SELECT count(*) FROM batch_part WHERE state = 'ingested'"
        assert db.execute(batched).fetchone() == (1,)
        done = "SELECT count(*) FROM request WHERE state = ?"
        assert db.execute(done, (State.DONE,)).fetchone()[0] > 50
    seen = hidden = 0
    for place, content in say.places():
        seen, hidden = seen + 1, hidden + (b"[hidden]" in content)
        for spelling in SPELLINGS:
            assert spelling not in content, place
    assert seen > 1000, "stores were looked into"
    assert hidden, "it was there to be hidden"
    head = gzip.decompress((tmp_path / "tape.jsonl.gz").read_bytes()).lower()
    assert b"authorization" not in head
    assert b"api-key" not in head


def _faulty_run(command, server):
    """The real command, with the client's own logging at its loudest."""
    loud = {"OPENAI_LOG": "debug", "PYTHONFAULTHANDLER": "1"}
    process = command.start("run", "--max-reject-rate", "1", **loud)
    until(lambda: server.posts, process)
    assert KEY.encode() not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
    status, said = command.end(process)
    assert status == 0, said
    assert "HTTP" in said, "it was loud"
