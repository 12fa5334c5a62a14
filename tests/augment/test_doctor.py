"""What `doctor` finds, and that it shows no key."""

import json
import resource
import sqlite3
import subprocess
import sys

import pytest

from augment.checks import has_wal_reset_bug, provider_checks, store_checks, versions
from augment.commands.run import within_file_limit
from augment.config import build_config
from augment.store import Store, reserve
from tests.augment.drive import plain_spec, plan_all
from tests.augment.fault_server import FaultServer

KEY = "sk-canary-77d1c9"


@pytest.mark.parametrize(
    ("version", "bad"),
    [
        ("3.40.1", True), ("3.44.5", True), ("3.44.6", False), ("3.45.0", True), ("3.50.6", True),
        ("3.50.7", False), ("3.51.2", True), ("3.51.3", False), ("3.52.0", False), ("4.0.0", False),
    ],
)  # fmt: skip
def test_the_sqlite_releases_with_the_bug_are_known(version, bad):
    assert has_wal_reset_bug(tuple(map(int, version.split(".")))) is bad


def test_versions_name_what_is_installed():
    found = {check.name: check for check in versions()}
    assert found["sqlite"].text.startswith(sqlite3.sqlite_version)
    assert found["pydantic"].verdict == "ok"


def verdicts(checks):
    return {check.name: (check.verdict, check.text) for check in checks}


def test_a_store_that_is_not_there_yet_is_no_fault(tmp_path):
    found = verdicts(store_checks(tmp_path / "a" / "b"))
    assert found["store"][0] == "warn"
    assert not (tmp_path / "a").exists()


def test_a_sound_store_and_what_waits_in_its_spool(tmp_path):
    with Store(tmp_path, create=True, spool_size=65536) as store:
        store.spool.write(17, b"a body nobody committed")
        assert verdicts(store_checks(tmp_path))["spool"][1] == "in use"
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    found = verdicts(store_checks(tmp_path))
    assert found["spool"] == ("ok", "1 whole bodies; the next run commits them")
    assert {name for name, (verdict, _) in found.items() if verdict == "fail"} == set()
    after = {p: p.read_bytes() for p in tmp_path.iterdir() if not p.name.endswith(("-shm", "-wal"))}
    assert after == before, "looking changes nothing"


def test_what_waits_in_batch_files_is_no_call_that_a_run_settles(tmp_path):
    with Store(tmp_path, create=True, spool_size=65536) as store:
        plan_all(store, plain_spec(), 2)
        store.do(lambda db: db.execute("INSERT INTO run(t0) VALUES (0)").lastrowid)
        for lane, request in (("sync", 1), ("batch:part", 2)):
            store.do(
                lambda db, lane=lane, request=request: reserve(
                    db, run=1, lane=lane, requests=[request], bound_pusd=0, price=None, now=0
                )
            )
    found = verdicts(store_checks(tmp_path))
    assert found["calls without an end"] == ("ok", "1; the next run settles them")
    assert found["requests in batch files"] == ("ok", "1; see `python -m augment batch list`")


def test_a_damaged_store_is_found(tmp_path):
    with Store(tmp_path, create=True, spool_size=65536) as store:
        rows = [(f"k{i}", "v" * 99) for i in range(999)]
        store.do(lambda db: db.executemany("INSERT INTO meta VALUES (?, ?)", rows).rowcount)
    path = tmp_path / "main.sqlite"
    damaged = bytearray(path.read_bytes())
    damaged[-3 * 8192 :] = b"\xff" * (3 * 8192)
    path.write_bytes(damaged)
    assert any(check.verdict == "fail" for check in store_checks(tmp_path))
    path.write_bytes(b"no database at all" * 999)
    assert verdicts(store_checks(tmp_path))["store"][0] == "fail"


def test_files_that_others_may_read_are_named(tmp_path):
    with Store(tmp_path / "store", create=True, spool_size=65536):
        pass
    assert "permissions" not in verdicts(store_checks(tmp_path / "store"))
    (tmp_path / "store" / "main.sqlite").chmod(0o644)
    assert "main.sqlite" in verdicts(store_checks(tmp_path / "store"))["permissions"][1]


def provider_of(url, **other):
    values = {"name": "openai", "base_urls": [url], **other}
    places = dict.fromkeys(("dataset", "store", "out"), "x")
    return build_config({**places, "provider": values})


def test_the_key_is_looked_for_and_not_shown(monkeypatch):
    config = provider_of("https://api.openai.com/v1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert verdicts(provider_checks(config, online=False))["key"][0] == "fail"
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    found = verdicts(provider_checks(config, online=False))
    assert found["key"] == ("ok", "`OPENAI_API_KEY` is set")
    assert KEY not in json.dumps(found)


@pytest.mark.parametrize(
    ("status", "verdict"), [(200, "ok"), (401, "fail"), (307, "warn"), (500, "warn")]
)
def test_an_address_is_asked_once_when_told(monkeypatch, status, verdict):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    asked = []

    def routes(method, path, headers, raw):
        asked.append((method, path, headers.get("authorization")))
        return status, {"location": "http://127.0.0.1:9/"}, KEY.encode()

    with FaultServer(routes=routes) as server:
        found = verdicts(provider_checks(provider_of(server.url), online=True))
    assert asked == [("GET", "/v1/models", f"Bearer {KEY}")]
    assert found["base_url"][0] == verdict
    assert KEY not in json.dumps(found)


def test_an_address_nobody_listens_at_is_said(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with FaultServer() as server:
        url = server.url
    found = verdicts(provider_checks(provider_of(url), online=True))
    assert found["base_url"][0] == "fail"
    assert verdicts(provider_checks(provider_of("http://example.org/v1"), online=True))[
        "base_url"
    ][0] == "fail", "a key is not sent in the clear"  # fmt: skip


def test_few_open_files_lower_the_concurrency_and_crash_nothing():
    code = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
from augment.commands.run import within_file_limit
from augment.config import build_config
places = dict.fromkeys(("dataset", "store", "out"), "x")
config = build_config({**places, "provider": {"concurrency": 64}})
print(within_file_limit(config).provider.concurrency)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 1 <= int(said.stdout) < 64
    assert "ulimit -n" in said.stderr


def test_a_low_soft_limit_is_raised_where_it_may_be():
    code = """
import resource
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
from augment.commands.run import within_file_limit
from augment.config import build_config
places = dict.fromkeys(("dataset", "store", "out"), "x")
config = build_config({**places, "provider": {"concurrency": 64}})
print(within_file_limit(config).provider.concurrency)
"""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < 200:
        pytest.skip("this machine allows few open files")
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (said.stdout.strip(), said.stderr) == ("64", "")


def test_enough_files_change_nothing():
    config = provider_of("https://api.openai.com/v1", concurrency=4)
    assert within_file_limit(config) is config
