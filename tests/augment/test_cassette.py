"""Cassettes as files: what is in them, what is not, and what damage does."""

from __future__ import annotations

import base64
import gzip
import json
import tracemalloc

import pytest

from augment.cassette import Cassette, raw_of, verify
from augment.cassette_dump import dump
from augment.cli import run_command
from augment.errors import LockedStop
from augment.reply_index import ReplyIndex
from augment.specs import request_key
from augment.store import Store
from llmrec_pl.errors import AugmentationError, ConfigError
from tests.augment.fault_replies import Step
from tests.augment.taped import Scripted, taped, write_pool

KEY = "sk-live-cassette-0123456789"


def lines_of(path):
    return [json.loads(text) for text in gzip.decompress(path.read_bytes()).splitlines()]


def write_lines(path, lines):
    path.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    return path


@pytest.fixture(scope="module")
def tape(tmp_path_factory):
    """(cassette, config, dataset) of a run in which much went wrong."""
    folder = tmp_path_factory.mktemp("tape")
    config, dataset = taped(folder, Scripted(seed=2, faults=0.5))
    dump(config.store, config, dataset, folder / "tape.jsonl.gz")
    return folder / "tape.jsonl.gz", config, dataset


def test_it_holds_every_request_with_its_key_and_every_reply(tape):
    path, config, _ = tape
    header, *entries, last = lines_of(path)
    assert last == {"end": True, "lines": len(entries) + 2}
    assert header["format"] == "llmrec-cassette"
    assert set(header["specs"]) == {"pairs", "profiles", "attributes", "embed"}
    for entry in entries:
        key = request_key(entry["provider"], entry["endpoint"], entry["body"], entry["draw"])
        assert key.hex() == entry["key"]
    with Store(config.store) as store:
        rows = store.do(lambda db: db.execute("SELECT key FROM request").fetchall())
        (raws,) = store.do(
            lambda db: db.execute(
                "SELECT count(*) FROM attempt a JOIN call_item c ON c.attempt = a.id JOIN request "
                "r ON r.id = c.request JOIN spec s ON s.id = r.spec WHERE a.raw IS NOT NULL AND "
                "s.kind <> 'embed'"
            ).fetchone()
        )
    assert {entry["key"] for entry in entries} >= {key.hex() for (key,) in rows}
    assert sum("raw" in entry for entry in entries) == raws
    assert any("vector" in entry for entry in entries)
    assert any("none" in entry for entry in entries)


def test_rejected_replies_are_in_it_too(tape):
    by_key = {}
    for entry in Cassette(tape[0]).entries():
        if "raw" in entry:
            by_key.setdefault(entry["key"], []).append(raw_of(entry))
    assert any(len(raws) > 1 for raws in by_key.values())
    assert any(b"no JSON" in raw for raws in by_key.values() for raw in raws)


def test_equal_stores_give_equal_bytes(tape, tmp_path):
    path, config, dataset = tape
    dump(config.store, config, dataset, tmp_path / "again.jsonl.gz")
    assert (tmp_path / "again.jsonl.gz").read_bytes() == path.read_bytes()


def test_it_names_no_place_of_this_machine_and_no_address(tape):
    path, config, _ = tape
    text = gzip.decompress(path.read_bytes()).decode()
    assert str(config.store.parent) not in text
    header = json.loads(text.splitlines()[0])
    assert header["config"]["provider"]["base_urls"] == []
    for word in ("authorization", "api-key", "Bearer", "127.0.0.1"):
        assert word not in text


def test_without_compression_it_reads_the_same(tape, tmp_path):
    path, config, dataset = tape
    counts = dump(config.store, config, dataset, tmp_path / "plain.jsonl")
    assert list(Cassette(tmp_path / "plain.jsonl").entries()) == list(Cassette(path).entries())
    assert verify(Cassette(tmp_path / "plain.jsonl")) == counts


def test_a_reply_that_is_no_text_is_kept_byte_for_byte(tmp_path):
    class Bytes(Scripted):
        async def send(self, call, journal):
            reply = await super().send(call, lambda _: None)
            body = b"\xff\xfe not UTF-8"
            journal(body)
            return type(reply)(200, {}, body)

    config, dataset = taped(tmp_path, Bytes(), profiles=None, attributes=None, embed=None)
    dump(config.store, config, dataset, tmp_path / "b.jsonl.gz")
    raws = {raw_of(entry) for entry in Cassette(tmp_path / "b.jsonl.gz").entries()}
    assert raws == {b"\xff\xfe not UTF-8"}


@pytest.mark.parametrize("hidden", [False, True])
def test_a_live_key_in_a_reply_stops_the_dump(tmp_path, monkeypatch, hidden):
    class Leaky(Scripted):
        def _step(self, call):
            return Step(content=f"your key is {KEY}")

        async def send(self, call, journal):
            tail = b"\xff" if hidden else b""
            return await super().send(call, lambda body: journal(body + tail))

    config, dataset = taped(tmp_path, Leaky(), profiles=None, attributes=None, embed=None)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(AugmentationError, match="no cassette is written") as caught:
        dump(config.store, config, dataset, tmp_path / "leak.jsonl.gz")
    assert KEY not in str(caught.value)
    assert not list(tmp_path.glob("leak*"))


def test_pools_lie_beside_it(tmp_path):
    first, dataset = taped(tmp_path, Scripted(), pairs=None, embed=None)
    pool = write_pool(tmp_path / "pools", dataset)
    config, _ = taped(tmp_path, Scripted(), films=first.dataset, pool=pool)
    dump(config.store, config, dataset, tmp_path / "c.jsonl.gz")
    beside = tmp_path / "c.jsonl.gz.pools"
    assert (beside / "candidates.parquet").read_bytes() == pool.read_bytes()
    assert sorted(path.name for path in beside.iterdir()) == [
        "candidates.parquet",
        "predictions.json",
    ]


def test_it_wants_a_store_to_itself_and_a_name_that_fits(tape, tmp_path):
    _, config, dataset = tape
    with Store(config.store), pytest.raises(LockedStop):
        dump(config.store, config, dataset, tmp_path / "c.jsonl.gz")
    with pytest.raises(ConfigError, match=r"\.jsonl\.gz"):
        dump(config.store, config, dataset, tmp_path / "c.zip")


# Damage ------------------------------------------------------------------------------------


def test_verify_finds_what_was_changed(tape, tmp_path):
    lines = lines_of(tape[0])
    asked = next(line for line in lines if "raw" in line)
    asked["body"]["messages"][0]["content"] += " please"
    vector = next(line for line in lines if "vector" in line)
    vector["vector"] = base64.b64encode(b"\0" * 12).decode()
    del next(line for line in lines if "none" in line)["provider"]
    found = verify(Cassette(write_lines(tmp_path / "c.gz", lines)))
    assert found.n_problems == 3
    told = "\n".join(found.problems)
    assert "the key is not that of the body" in told
    assert "the vector has another length" in told
    assert "incomplete" in told


def test_a_cut_file_is_told_from_a_whole_one(tape, tmp_path):
    whole = tape[0].read_bytes()
    cut = tmp_path / "cut.jsonl.gz"
    for size in (len(whole) // 2, len(whole) - 4):
        cut.write_bytes(whole[:size])
        with pytest.raises(AugmentationError, match=r"damaged|cut"):
            list(Cassette(cut).entries())
    write_lines(cut, lines_of(tape[0])[:-1])
    with pytest.raises(AugmentationError, match="cut or was edited"):
        list(Cassette(cut).entries())
    lines = lines_of(tape[0])
    write_lines(cut, [*lines[:3], *lines[4:]])
    with pytest.raises(AugmentationError, match="cut or was edited"):
        list(Cassette(cut).entries())


@pytest.mark.parametrize(
    ("content", "text"),
    [(b"", "no JSON object"), (b"{}\n", "no cassette"), (b"\x1f\x8bxx", "damaged")],
)
def test_other_files_are_no_cassettes(tmp_path, content, text):
    path = tmp_path / "c.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(AugmentationError, match=text):
        Cassette(path)
    with pytest.raises(AugmentationError, match="no cassette at"):
        Cassette(tmp_path / "nowhere")


def test_a_newer_one_is_refused(tape, tmp_path):
    header, *rest = lines_of(tape[0])
    with pytest.raises(AugmentationError, match="update llmrec_pl"):
        Cassette(write_lines(tmp_path / "c.gz", [{**header, "version": 2}, *rest]))


# Use ---------------------------------------------------------------------------------------


def test_the_command_needs_only_the_store(tape, tmp_path, capsys):
    path, config, _ = tape
    out = tmp_path / "sub" / "c.jsonl.gz"
    run_command("cassette", ["dump", str(config.store), "--out", str(out)])
    assert out.read_bytes() == path.read_bytes()
    run_command("cassette", ["verify", str(out)])
    told = capsys.readouterr().out
    assert told.count("replies") == 2
    lines = lines_of(path)
    lines[1]["draw"] += 1
    with pytest.raises(AugmentationError, match="1 entries"):
        run_command("cassette", ["verify", str(write_lines(out, lines))])


def test_the_index_keeps_replies_on_disk(tape, tmp_path):
    header = lines_of(tape[0])[0]
    body, n = {"model": "m", "messages": []}, 4_000
    entries = [
        {"key": f"{i:064x}", "provider": "p", "endpoint": "chat.completions", "draw": 0}
        | {"body": body, "raw": f"{i} {'reply ' * 500}"}
        for i in range(n)
    ]
    path = write_lines(tmp_path / "c.gz", [header, *entries, {"end": True, "lines": n + 2}])
    del entries
    tracemalloc.start()
    index = ReplyIndex(Cassette(path), tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20  # of 12 MB
    assert index.take((7).to_bytes(32)).startswith(b"7 reply")
    assert index.take((7).to_bytes(32)) is None
    with pytest.raises(KeyError):
        index.take(b"x" * 32)
    index.close()
